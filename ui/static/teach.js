// Rating answers, and the list of taught rows.
"use strict";
(() => {
  const { $, el, icon } = vqa;

  vqa.on("judge", ({ turn, verdict }) => {
    const again = turn.verdict === verdict;
    if (verdict === "right") return judge(turn, again ? null : "right");
    // A second click lets the user edit or withdraw the correction.
    if (again) return vqa.send("teach", { do: "corrected", turn: turn.id });
    correct(turn, "");
  });
  vqa.on("corrected", (found) => {
    const turn = vqa.state.view.turns.find((one) => one.id === found.turn);
    if (turn) correct(turn, found.answer);
  });

  function correct(turn, answer) {
    document.querySelector(".correction")?.remove();
    const box = el("input", { "aria-label": "The right answer", maxlength: 4000,
      placeholder: "What would the right answer be?", value: answer });
    const close = () => {
      form.remove();
      document.querySelector(`[data-turn="${turn.id}"] [aria-label="This is wrong"]`)?.focus();
    };
    const finish = (verdict) => (close(), judge(turn, verdict));
    const form = el("form.correction",
      { onsubmit: (event) => {
        event.preventDefault();
        close();
        judge(turn, "wrong", box.value);
      } },
      box,
      el("button.primary", { type: "submit" }, "Keep"),
      turn.verdict === "wrong"
        ? el("button.link", { type: "button", onclick: () => finish(null) }, "Undo")
        : el("button.link", { type: "button", onclick: () => finish("wrong") }, "Only mark as wrong"));
    form.addEventListener("keydown", (event) => event.key === "Escape" && close());
    document.querySelector(`[data-turn="${turn.id}"]`).append(form);
    box.focus();
    form.scrollIntoView({ block: "nearest" });
  }

  const judge = (turn, verdict, correction = "") =>
    teach("judge", { conversation: vqa.state.view.conversation, turn: turn.id, verdict, correction });

  vqa.on("shown", (name) => name === "teach" && teach("list"));

  let taught = null;
  let limit = 0; // number of rows to show; 0 is the server's default
  const teach = (action, more = {}) => vqa.send("teach", { do: action, most: limit, ...more });
  vqa.on("taught", (what) => {
    taught = what;
    drawTaught();
  });

  function drawTaught() {
    if ($("taught").querySelector("form")) return; // a row is being edited; redrawn afterwards
    const { rows, count, imported } = taught;
    $("taught-count").textContent = !count ? "" : count === 1 ? "1 row" : `${count.toLocaleString()} rows`;
    for (const node of document.querySelectorAll("#view-teach .with-rows")) node.hidden = !count;
    vqa.redraw($("taught"), () => $("taught").replaceChildren(...rows.map(rowOf), ...(count > 1 || imported ? [rest(rows.length, count, imported)] : [])));
    if (!count) {
      $("taught").append(el("li.nothing", {},
        "Nothing yet. Ask something, press thumbs down under the answer and type the right one: it appears here.",
        el("button.chip", { "data-view-of": "chat" }, "Go to the chat")));
    }
  }

  /** The line below the rows: show more, undo an import, delete all. */
  function rest(shown, count, imported) {
    const words = (number) => (number === 1 ? "1 row" : `${number.toLocaleString()} rows`);
    const link = (text, onclick) => el("button.link", { onclick }, text);
    const confirmed = (title, text, action) => () => vqa.confirm(title, text, () => teach(action));
    return el("li.note", {}, el("div.actions", {},
      count > shown ? el("span", {}, `The latest ${shown.toLocaleString()} are shown.`) : null,
      count > shown ? link("Show more", () => {
        limit = shown + 500;
        teach("list");
      }) : null,
      imported ? link("Undo the last import", confirmed("Undo the last import?", `This deletes the ${words(imported)} it added.`, "undo-import")) : null,
      count > 1 ? link("Delete all", confirmed("Delete all rows?", `${words(count)}. Export them first to keep a copy.`, "delete-all")) : null));
  }

  function rowOf(row) {
    const text = el("div.texts", {},
      el("p.asked", { dir: "auto" }, row.question || "(only a picture)"),
      el("p.right", { dir: "auto" }, row.answer),
      row.said && row.said !== row.answer ? el("p.note", {}, "The model said: ", el("s", {}, row.said)) : null);
    const item = el("li", {},
      el("div.pictures", {}, ...row.pictures.map(vqa.thumb)),
      text,
      el("div.row-tools", {},
        el("button.icon", { "aria-label": "Edit this row", title: "Edit", onclick: () => edit(item, row) }, icon("pen")),
        el("button.icon", { "aria-label": "Delete this row", title: "Delete",
          onclick: () => vqa.confirm("Delete this row?", `${row.question} ${row.answer}`.trim(), () =>
            teach("delete", { row: row.id })) }, icon("bin"))));
    return item;
  }

  function edit(item, row) {
    const question = el("input", { "aria-label": "Question", maxlength: 4000 });
    const answer = el("input", { "aria-label": "Right answer", maxlength: 4000 });
    question.value = row.question;
    answer.value = row.answer;
    const form = el("form.texts",
      { onsubmit: (event) => {
        event.preventDefault();
        teach("edit", { row: row.id, question: question.value, answer: answer.value });
        close();
      } },
      question, answer, el("div.actions", {}, el("button.primary", { type: "submit" }, "Keep"),
        el("button.link", { type: "button", onclick: close }, "Cancel")));
    function close() {
      const shown = rowOf(row);
      item.replaceWith(shown);
      shown.querySelector("[aria-label='Edit this row']").focus();
      drawTaught();
    }
    form.addEventListener("keydown", (event) => event.key === "Escape" && close());
    item.querySelector(".texts").replaceWith(form);
    answer.focus();
  }

  vqa.on("do:import-rows", () => $("rows-file").click());
  vqa.setups.push(() => {
    $("rows-file").addEventListener("change", async () => {
      const [file] = $("rows-file").files;
      $("rows-file").value = "";
      if (!file) return;
      const found = await vqa.upload(`vqa/taught?name=${encodeURIComponent(file.name)}`, file);
      if (!found) return;
      vqa.toast(found.count === 1 ? "1 row imported." : `${found.count.toLocaleString()} rows imported.`);
      if (found.problems.length) vqa.toast(`Skipped: ${found.problems.slice(0, 3).join("; ")}`, "error");
      teach("list");
    });
  });
})();
