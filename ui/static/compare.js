// Compare: one question to two models.
"use strict";
(() => {
  const { $, el, icon } = vqa;
  let picture = null;
  let drawn = "";
  let models = []; // keys of the two models that were asked
  let running = false;
  let picks = []; // keys of the two selected models
  let sides = [];
  const question = el("input", { "aria-label": "Question", placeholder: "What do you want to know?", maxlength: 20000 });

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
        ...[...new Set(choices.map((choice) => choice.group))].map((group) =>
          el("optgroup", { label: group }, ...choices.filter((choice) => choice.group === group).map((choice) =>
            el("option", { value: choice.key }, choice.detail ? `${choice.label} (${choice.detail})` : choice.label)))));
      node.value = choices.some((choice) => choice.key === chosen) ? chosen : preset;
      node.addEventListener("change", () => {
        picks = [left.value, right.value];
        showHint();
      });
      return node;
    };
    const other = choices.find((choice) => choice.here && choice.key !== picked); // never one that has to be downloaded first
    const left = select("First model", picks[0], other ? other.key : picked);
    const right = select("Second model", picks[1], picked);
    const hint = el("p.note");
    const showHint = () => {
      hint.hidden = left.value !== right.value;
      hint.textContent = other
        ? "These are the same model: pick another one to compare it with."
        : "No other model is on this machine yet: train one, or pick one to download.";
    };
    showHint();
    const file = el("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Picture file" });
    const place = el("span.compare-picture");
    const show = () => place.replaceChildren(...(picture
      ? [vqa.thumb({ ...picture, number: 1 }),
        el("button.icon.remove", { type: "button", "aria-label": "Remove the picture",
          onclick: () => {
            picture = null;
            show();
            question.focus();
          } }, icon("x"))]
      : []));
    vqa.comparePicture = async (chosen) => {
      const name = encodeURIComponent(chosen.name || "pasted picture");
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
        el("button.chip", { type: "button", onclick: () => file.click() }, "Choose a picture"),
        el("button.chip", { type: "button", onclick: () => vqa.send("act", { do: "scene" }) }, "Draw me a scene"),
        place, file),
      el("div.actions.line", {}, question, el("button.primary", { type: "submit" }, "Ask both"),
        el("button.chip.stop", { type: "button", hidden: true, onclick: () => vqa.send("act", { do: "stop-comparing" }) }, "Stop")));
    $("compare-form").onsubmit = (event) => {
      event.preventDefault();
      if (!question.value.trim() && !picture) return vqa.toast("Write a question or add a picture.", "error");
      models = [left.value, right.value];
      busy(true);
      vqa.send("compare", { models, question: question.value, pictures: picture ? [picture.digest] : [] });
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

  const WORDS = { waiting: "Next …", loading: "Loading …", answering: "Looking …", stopped: "Stopped." };
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
            : el("p.state", {}, side.state === "stopped" ? null : el("span.pulse", { "aria-hidden": "true" }), side.message && side.state === "loading" ? side.message : WORDS[side.state] || "",
                side.state === "loading"
                  ? el("button.link", { onclick: () => vqa.send("act", { do: "cancel-load", model: models[position] }) }, "Cancel")
                  : null),
          side.html && side.state === "stopped" ? el("p.facts", {}, "Stopped.") : null,
          side.confidence ? el("p.facts", {}, `${Math.round(side.confidence * 100)} % sure`) : null))));
    vqa.codeButtons($("compared"));
  }
})();
