// Compare: one question to several models.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  const MAX_MODELS = 4;
  const MAX_PICTURES = 8;
  const KEPT = "compare"; // in the tab's session, so that a reload keeps the comparison
  const kept = restore();
  let drawn = "";
  let models = []; // keys of the models that were asked
  let running = false;
  let picks = kept.picks ?? []; // keys of the selected models, once a person has changed them
  let pictures = kept.pictures ?? [];
  let sides = (kept.sides ?? []).map((side) => (side.state === "answered" ? side : { ...side, state: "stopped" }));
  const question = el("input", { "aria-label": t("page.question"), placeholder: t("compare.placeholder"), value: kept.question ?? "" });

  function restore() {
    try {
      return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
    } catch {
      return {}; // the browser keeps nothing
    }
  }
  addEventListener("pagehide", () => {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify({ picks, pictures, sides, question: question.value }));
    } catch {
      // It is full, or the browser keeps nothing.
    }
  });

  vqa.on("shown", (name) => {
    if (name !== "compare") return;
    form();
    vqa.send("act", { do: "models" }); // a new one may have been trained
  });
  vqa.on("models", () => $("vqa").dataset.view === "compare" && form());

  function form() {
    const { choices, picked } = vqa.state.models;
    const key = choices.map((choice) => choice.key + choice.here).join();
    if (drawn === key) return;
    if (!drawn && sides.length) drawSides();
    drawn = key;
    const known = new Set(choices.map((choice) => choice.key));
    const other = choices.find((choice) => choice.here && choice.key !== picked); // never one that has to be downloaded first
    const current = [other ? other.key : picked, picked].map((preset, place) => (known.has(picks[place]) ? picks[place] : preset));
    current.push(...picks.slice(2).filter((one) => known.has(one)));
    const hint = el("p.note");
    const add = el("button.chip", { type: "button", onclick: () => {
      current.push(choices.find((choice) => choice.here && !current.includes(choice.key))?.key ?? picked);
      drawModels(true);
      list.lastChild.querySelector("select").focus();
    } }, icon("plus"), t("compare.addModel"));
    const more = el("div.actions", {}, add);
    const list = el("div.columns");
    const select = (chosen, place) => {
      const node = el("select", { "aria-label": t("compare.modelNumber", { number: place + 1 }) },
        ...vqa.modelGroups(choices).map(([group, members]) =>
          el("optgroup", { label: group }, ...members.map((choice) =>
            el("option", { value: choice.key }, choice.detail.length ? `${vqa.message(choice.label)} (${vqa.message(choice.detail)})` : vqa.message(choice.label))))));
      node.value = chosen;
      node.addEventListener("change", () => {
        current[place] = node.value;
        picks = [...current];
        showHint();
      });
      const remove = () => {
        current.splice(place, 1);
        drawModels(true);
        add.focus();
      };
      return el("div.compare-model", {}, node, current.length > 2
        ? el("button.icon", { type: "button", "aria-label": t("compare.removeModel", { number: place + 1 }), onclick: remove }, icon("x"))
        : null);
    };
    const showHint = () => {
      hint.hidden = new Set(current).size === current.length;
      hint.textContent = t(other ? "compare.same" : "compare.noOther");
    };
    function drawModels(changed) {
      if (changed) picks = [...current];
      list.replaceChildren(...current.map(select));
      more.hidden = current.length >= Math.min(MAX_MODELS, choices.length);
      showHint();
    }
    drawModels(false);
    const file = el("input", { type: "file", accept: $("files").accept, multiple: true, hidden: true, "aria-label": t("compare.file") });
    file.addEventListener("change", async () => {
      await vqa.comparePictures([...file.files]);
      file.value = "";
    });
    $("compare-form").replaceChildren(
      list, more, hint,
      el("div.actions", {},
        el("button.chip", { type: "button", onclick: () => file.click() }, t("compare.choose")),
        el("button.chip", { type: "button", onclick: () => vqa.send("act", { do: "scene" }) }, t("compare.scene")),
        shown, file),
      el("div.actions.line", {}, question, el("button.primary", { type: "submit" }, t("compare.ask")),
        el("button.chip.stop", { type: "button", hidden: true, onclick: () => vqa.send("act", { do: "stop-comparing" }) }, t("page.stop"))));
    $("compare-form").onsubmit = (event) => {
      event.preventDefault();
      if (!question.value.trim() && !pictures.length) return vqa.toast(t("compare.empty"), "error");
      const chosen = current.map((one) => choices.find((choice) => choice.key === one));
      const missing = [...new Set(chosen)].filter((choice) => !choice.here);
      const go = () => {
        if (missing.length) return vqa.withModel(missing.shift(), (fields) => (download ||= Boolean(fields.download), go()));
        models = chosen.map((choice) => choice.key);
        busy(true);
        vqa.send("compare", { models, question: question.value, pictures: pictures.map((one) => one.digest), download });
      };
      let download = false;
      go();
    };
    busy(running);
    show();
  }

  const shown = el("div.compare-pictures");
  const show = () => shown.replaceChildren(...pictures.flatMap(vqa.lostParts), ...pictures.map((picture, position) =>
    el("span.compare-picture", {}, vqa.thumb({ ...picture, number: position + 1 }),
      el("button.icon.remove", { type: "button", "aria-label": t("composer.remove", { number: position + 1 }),
        onclick: () => {
          pictures = pictures.filter((one) => one !== picture);
          show();
          question.focus();
        } }, icon("x")))));
  vqa.comparePictures = async (files) => {
    const room = () => MAX_PICTURES - pictures.length;
    for (const file of files) {
      if (room() <= 0) return vqa.toast(t("composer.tooMany", { count: MAX_PICTURES }), "error");
      const pages = (await vqa.isPdf(file)) ? await vqa.choosePages(file, room()) : [null];
      for (const page of pages) {
        const added = await vqa.uploadPicture(file, page);
        if (!added || pictures.some((one) => one.digest === added.digest)) continue;
        pictures.push(added);
        show();
      }
    }
  };
  vqa.compareScene = (scene) => {
    pictures = [scene.picture];
    question.value = scene.question;
    show();
  };

  function busy(now) {
    running = now;
    $("compare-form").querySelector("[type=submit]").disabled = now;
    $("compare-form").querySelector(".stop").hidden = !now;
    $("compared").setAttribute("aria-busy", String(now)); // screen readers read it when it is complete
  }
  vqa.on("compared_done", () => busy(false));
  vqa.on("error", (text, { channel }) => {
    if (channel !== "compare") return;
    busy(false);
    sides = [];
    $("compared").replaceChildren(el("p.failed", {}, text));
  });

  const STATES = { waiting: "compare.waiting", loading: "compare.loading", answering: "compare.answering", stopped: "compare.stopped" };
  vqa.on("compared", (found) => {
    sides = found;
    drawSides();
  });
  function drawSides() {
    if ($("compared").querySelector("button:active")) return void setTimeout(drawSides, 200); // a click is in progress
    vqa.redraw($("compared"), () => $("compared").replaceChildren(
      ...sides.map((side, position) =>
        el("div.panel", {},
          el("p.note", {}, vqa.message(side.label)),
          side.state === "failed" ? el("p.failed", {}, vqa.message(side.message)) : null,
          side.html
            ? el("div.answer", { html: side.html })
            : side.state === "failed" ? null : el("p.state", {}, side.state === "stopped" ? null : el("span.pulse", { "aria-hidden": "true" }), (side.state === "loading" && vqa.message(side.message)) || t(STATES[side.state] ?? ""),
                side.state === "loading"
                  ? el("button.link", { onclick: () => vqa.send("act", { do: "cancel-load", model: models[position] }) }, t("page.cancel"))
                  : null),
          side.html && side.state === "stopped" ? el("p.facts", {}, t("compare.stopped")) : null,
          side.confidence ? el("p.facts", {}, vqa.confidence(side)) : null))));
    vqa.codeButtons($("compared"));
  }
})();
