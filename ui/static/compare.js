// Two models, one question.
"use strict";
(() => {
  const { $, el } = vqa;
  let picture = null;
  let drawn = "";

  vqa.on("shown", (name) => name === "compare" && form());
  vqa.on("models", () => $("vqa").dataset.view === "compare" && form());

  function form() {
    const { choices, picked } = vqa.state.models;
    const key = choices.map((choice) => choice.key).join();
    if (drawn === key) return;
    drawn = key;
    const select = (label, chosen) => {
      const node = el("select", { "aria-label": label },
        ...choices.map((choice) => el("option", { value: choice.key }, `${choice.label} (${choice.detail})`)));
      node.value = chosen;
      return node;
    };
    const other = choices.find((choice) => choice.key !== picked) || choices[0];
    const left = select("First model", other.key);
    const right = select("Second model", picked);
    const question = el("input", { "aria-label": "Question", placeholder: "What do you want to know?", maxlength: 4000 });
    const file = el("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Picture file" });
    const place = el("span.compare-picture");
    const show = () => place.replaceChildren(picture ? vqa.thumb({ ...picture, number: 1 }) : "");
    file.addEventListener("change", async () => {
      const answer = await fetch(`vqa/pictures?name=${encodeURIComponent(file.files[0].name)}`, { method: "POST", body: file.files[0] });
      const found = await answer.json().catch(() => ({}));
      if (!answer.ok) return vqa.toast(found.error || "The picture could not be read.", "error");
      picture = found;
      show();
    });
    vqa.compareScene = (scene) => {
      picture = scene.picture;
      question.value = scene.question;
      show();
    };
    $("compare-form").replaceChildren(
      el("div.columns", {}, left, right),
      el("div.actions", {},
        el("button.chip", { type: "button", onclick: () => file.click() }, "Choose a picture"),
        el("button.chip", { type: "button", onclick: () => vqa.send("act", { do: "scene" }) }, "Draw me a scene"),
        place, file),
      el("div.actions.line", {}, question, el("button.primary", { type: "submit" }, "Ask both")));
    $("compare-form").onsubmit = (event) => {
      event.preventDefault();
      vqa.send("compare", { models: [left.value, right.value], question: question.value, pictures: picture ? [picture.digest] : [] });
    };
    show();
  }

  const WORDS = { waiting: "Next …", loading: "Loading …", answering: "Looking …" };
  vqa.on("compared", (sides) =>
    $("compared").replaceChildren(
      ...sides.map((side) =>
        el("div.panel", {},
          el("p.note", {}, side.label),
          side.html ? el("div.answer", { html: side.html }) : el("p.state", {}, el("span.pulse"), WORDS[side.state] || ""),
          side.confidence ? el("p.facts", {}, `${Math.round(side.confidence * 100)} % sure`) : null))));
})();
