// Rating answers, and the list of taught rows.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;

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
    const box = el("input", { "aria-label": t("teach.rightAnswer"), placeholder: t("teach.whatIsRight"), value: answer });
    const close = () => {
      form.remove();
      document.querySelector(`[data-turn="${turn.id}"] [data-verdict=wrong]`)?.focus();
    };
    const finish = (verdict) => (close(), judge(turn, verdict));
    const form = el("form.correction",
      { onsubmit: async (event) => {
        event.preventDefault();
        if (await vqa.save(form, "teach", rating(turn, "wrong", box.value))) close();
        else box.focus();
      } },
      box,
      el("button.primary", { type: "submit" }, t("page.save")),
      turn.verdict === "wrong"
        ? el("button.link", { type: "button", onclick: () => finish(null) }, t("teach.undo"))
        : el("button.link", { type: "button", onclick: () => finish("wrong") }, t("teach.onlyWrong")));
    form.addEventListener("keydown", (event) => event.key === "Escape" && close());
    document.querySelector(`[data-turn="${turn.id}"]`).append(form);
    box.focus();
    form.scrollIntoView({ block: "nearest" });
  }

  const rating = (turn, verdict, correction = "") =>
    ({ do: "judge", most: limit, conversation: vqa.state.view.conversation, turn: turn.id, verdict, correction });
  const judge = (turn, verdict) => vqa.send("teach", rating(turn, verdict));

  let changed = false; // rows, which the chat may show as corrections
  vqa.on("shown", (name) => {
    if (name === "teach") teach("list");
    if (name !== "chat" || !changed) return;
    changed = false;
    vqa.send("act", { do: "refresh", conversation: vqa.state.view.conversation });
  });

  let taught = null;
  let limit = 0; // number of rows to show; 0 is the server's default
  const teach = (action, more = {}) => {
    changed ||= action !== "list";
    vqa.send("teach", { do: action, most: limit, ...more });
  };
  vqa.on("taught", (what) => {
    taught = what;
    drawTaught();
  });

  function drawTaught() {
    if ($("taught").querySelector("form")) return; // a row is being edited; redrawn afterwards
    const { rows, count, imported } = taught;
    $("taught-count").textContent = count ? t("teach.rows", { count }) : "";
    for (const node of document.querySelectorAll("#view-teach .with-rows")) node.hidden = !count;
    vqa.redraw($("taught"), () => $("taught").replaceChildren(...rows.map(rowOf), ...(count > 1 || imported ? [rest(rows.length, count, imported)] : [])));
    if (!count) {
      $("taught").append(el("li.nothing", {},
        t("teach.nothing"),
        el("button.chip", { "data-view-of": "chat" }, t("teach.toChat"))));
    }
  }

  /** The line below the rows: show more, undo an import, delete all. */
  function rest(shown, count, imported) {
    const link = (text, onclick) => el("button.link", { onclick }, text);
    const confirmed = (title, text, action) => () => vqa.confirm(title, text, () => teach(action));
    return el("li.note", {}, el("div.actions", {},
      count > shown ? el("span", {}, t("teach.latest", { count: shown })) : null,
      count > shown ? link(t("teach.showMore"), () => {
        limit = shown + 500;
        teach("list");
      }) : null,
      imported ? link(t("teach.undoImport"), confirmed(t("teach.undoImportTitle"), t("teach.undoImportText", { count: imported }), "undo-import")) : null,
      count > 1 ? link(t("teach.deleteAll"), confirmed(t("teach.deleteAllTitle"), t("teach.deleteAllText", { count }), "delete-all")) : null));
  }

  function rowOf(row) {
    const text = el("div.texts", {},
      el("p.asked", { dir: "auto" }, row.question || t("teach.onlyPicture")),
      el("p.right", { dir: "auto" }, row.answer),
      row.said && row.said !== row.answer ? el("p.note", {}, `${t("teach.modelSaid")} `, el("s", {}, row.said)) : null);
    const item = el("li", {},
      el("div.pictures", {}, ...row.pictures.map(vqa.thumb)),
      text,
      el("div.row-tools", {},
        el("button.icon", { "aria-label": t("teach.edit"), title: t("teach.edit"), onclick: () => edit(item, row) }, icon("pen")),
        el("button.icon", { "aria-label": t("teach.delete"), title: t("teach.delete"),
          onclick: () => vqa.confirm(t("teach.deleteTitle"), `${row.question} ${row.answer}`.trim(), () =>
            teach("delete", { row: row.id })) }, icon("bin"))));
    return item;
  }

  function edit(item, row) {
    const question = el("input", { "aria-label": t("page.question") });
    const answer = el("input", { "aria-label": t("teach.rightAnswer") });
    question.value = row.question;
    answer.value = row.answer;
    const form = el("form.texts",
      { onsubmit: async (event) => {
        event.preventDefault();
        const edited = { do: "edit", most: limit, row: row.id, question: question.value, answer: answer.value };
        if (!(await vqa.save(form, "teach", edited))) return answer.focus();
        changed = true;
        close();
      } },
      question, answer, el("div.actions", {}, el("button.primary", { type: "submit" }, t("page.save")),
        el("button.link", { type: "button", onclick: close }, t("page.cancel"))));
    function close() {
      const shown = rowOf(row);
      item.replaceWith(shown);
      shown.querySelector(".row-tools button").focus();
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
      const skipped = found.problems.length ? t("teach.skipped", { problems: found.problems.slice(0, 3).join("; ") }) : "";
      vqa.toast(`${t("teach.imported", found)} ${skipped}`.trim(), skipped ? "error" : "plain");
      teach("list");
    });
  });
})();
