// Compare: one question to two models.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  let picture = null;
  let drawn = "";
  let models = []; // keys of the two models that were asked
  let running = false;
  let picks = []; // keys of the two selected models
  let sides = [];
  const question = el("input", { "aria-label": t("page.question"), placeholder: t("compare.placeholder"), maxlength: 20000 });

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
    drawn = key;
    const select = (label, chosen, preset) => {
      const node = el("select", { "aria-label": label },
        ...vqa.modelGroups(choices).map(([group, members]) =>
          el("optgroup", { label: group }, ...members.map((choice) =>
            el("option", { value: choice.key }, choice.detail.length ? `${choice.label} (${vqa.message(choice.detail)})` : choice.label)))));
      node.value = choices.some((choice) => choice.key === chosen) ? chosen : preset;
      node.addEventListener("change", () => {
        picks = [left.value, right.value];
        showHint();
      });
      return node;
    };
    const other = choices.find((choice) => choice.here && choice.key !== picked); // never one that has to be downloaded first
    const left = select(t("compare.first"), picks[0], other ? other.key : picked);
    const right = select(t("compare.second"), picks[1], picked);
    const hint = el("p.note");
    const showHint = () => {
      hint.hidden = left.value !== right.value;
      hint.textContent = other ? t("compare.same") : t("compare.noOther");
    };
    showHint();
    const file = el("input", { type: "file", accept: "image/*", hidden: true, "aria-label": t("compare.file") });
    const place = el("span.compare-picture");
    const show = () => place.replaceChildren(...(picture
      ? [vqa.thumb({ ...picture, number: 1 }),
        el("button.icon.remove", { type: "button", "aria-label": t("compare.remove"),
          onclick: () => {
            picture = null;
            show();
            question.focus();
          } }, icon("x"))]
      : []));
    vqa.comparePicture = async (chosen) => {
      const name = encodeURIComponent(chosen.name || t("composer.pasted"));
      const found = await vqa.upload(`vqa/pictures?name=${name}`, chosen);
      if (!found) return;
      picture = found;
      show();
    };
    file.addEventListener("change", async () => {
      if (file.files.length) await vqa.comparePicture(file.files[0]);
      file.value = "";
    });
    vqa.compareScene = (scene) => {
      picture = scene.picture;
      question.value = scene.question;
      show();
    };
    $("compare-form").replaceChildren(
      el("div.columns", {}, left, right), hint,
      el("div.actions", {},
        el("button.chip", { type: "button", onclick: () => file.click() }, t("compare.choose")),
        el("button.chip", { type: "button", onclick: () => vqa.send("act", { do: "scene" }) }, t("compare.scene")),
        place, file),
      el("div.actions.line", {}, question, el("button.primary", { type: "submit" }, t("compare.ask")),
        el("button.chip.stop", { type: "button", hidden: true, onclick: () => vqa.send("act", { do: "stop-comparing" }) }, t("page.stop"))));
    $("compare-form").onsubmit = (event) => {
      event.preventDefault();
      if (!question.value.trim() && !picture) return vqa.toast(t("compare.empty"), "error");
      const [first, second] = [left, right].map((box) => choices.find((choice) => choice.key === box.value));
      const missing = [...new Set([first, second])].filter((choice) => !choice.here);
      const go = () => {
        if (missing.length) return vqa.withModel(missing.shift(), (fields) => (download ||= Boolean(fields.download), go()));
        models = [first.key, second.key];
        busy(true);
        vqa.send("compare", { models, question: question.value, pictures: picture ? [picture.digest] : [], download });
      };
      let download = false;
      go();
    };
    busy(running);
    show();
  }

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
          el("p.note", {}, side.label),
          side.html
            ? el("div.answer", { html: side.html })
            : el("p.state", {}, side.state === "stopped" ? null : el("span.pulse", { "aria-hidden": "true" }), (side.state === "loading" && vqa.message(side.message)) || t(STATES[side.state] ?? ""),
                side.state === "loading"
                  ? el("button.link", { onclick: () => vqa.send("act", { do: "cancel-load", model: models[position] }) }, t("page.cancel"))
                  : null),
          side.html && side.state === "stopped" ? el("p.facts", {}, t("compare.stopped")) : null,
          side.confidence ? el("p.facts", {}, vqa.confidence(side)) : null))));
    vqa.codeButtons($("compared"));
  }
})();
