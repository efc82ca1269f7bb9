// Generation settings, stored on the server for each owner.
"use strict";
(() => {
  const { $, el, icon } = vqa;
  let form = null;

  vqa.on("settings", (settings) => {
    vqa.state.settings = settings;
    if (form && !form.contains(document.activeElement)) draw();
  });

  vqa.on("do:settings", () => toggle($("settings").hidden));
  function toggle(open) {
    $("settings").hidden = !open;
    document.querySelector("[data-do=settings]").setAttribute("aria-expanded", String(open));
    if (!open) return void document.querySelector("[data-do=settings]").focus();
    vqa.send("act", { do: "settings" }); // the model's defaults, in case it was loaded meanwhile
    draw();
    form.querySelector("select, input, textarea").focus();
  }

  const save = (change) => vqa.send("act", { do: "settings", ...change });

  function number(name, label, hint, { min, max, step, whole }) {
    const { settings } = vqa.state;
    const show = () => (box.value = vqa.state.settings[name] ?? "");
    const own = settings.defaults?.[name];
    const box = el("input", { type: "number", min, max, step, id: `set-${name}`, inputmode: "decimal",
      placeholder: own === null || own === undefined ? "the model's default" : `${own} (the model's default)` });
    show();
    box.addEventListener("change", () => {
      const value = box.value === "" ? null : Number(box.value);
      if (value !== null && (!box.checkValidity() || (whole && !Number.isInteger(value)))) {
        vqa.toast(`${label}: ${whole ? "a whole number " : ""}from ${min} to ${max}.`, "error");
        return show();
      }
      save({ [name]: value });
    });
    return el("div.field", {}, el("label", { for: `set-${name}` }, label), box, el("small", {}, hint));
  }

  function draw() {
    const { settings } = vqa.state;
    const style = el("select", { id: "set-style", onchange: (event) => save({ style: event.target.value }) },
      el("option", { value: "sentence" }, "In a sentence"), el("option", { value: "short" }, "In a word or two"));
    style.value = settings.style || "sentence";
    const system = el("textarea", { id: "set-system", rows: 4, maxlength: 4000,
      placeholder: "For example: Answer in French.", onchange: (event) => save({ system: event.target.value || null }) });
    system.value = settings.system || "";
    form = el("form", { onsubmit: (event) => event.preventDefault() },
      el("header", {}, el("h2", {}, "Settings"),
        el("button.icon", { type: "button", "aria-label": "Close settings", onclick: () => toggle(false) }, icon("x"))),
      el("div.field", {}, el("label", { for: "set-style" }, "Answers"), style),
      settings.system_prompts === false ? null
        : el("div.field", {}, el("label", { for: "set-system" }, "System prompt"), system,
          el("small", {}, "Sent to the model at the start of every chat.")),
      number("temperature", "Temperature", "0 gives the same answer each time; higher values vary more.", { min: 0, max: 5, step: 0.05 }),
      number("top_p", "Top p", "Samples from the likeliest tokens that add up to this probability.", { min: 0.05, max: 1, step: 0.05 }),
      number("max_new_tokens", "Longest answer", "In tokens; a word takes one or two.", { min: 1, max: 2048, step: 1, whole: true }),
      number("seed", "Seed", "Makes sampled answers reproducible.", { min: 0, max: 2 ** 31, step: 1, whole: true }),
      el("button.chip", { type: "button", onclick: () => {
        save({ system: null, temperature: null, top_p: null, max_new_tokens: null, seed: null, style: null });
        document.activeElement.blur();
      } }, "Reset to the model's defaults"));
    $("settings").replaceChildren(form);
  }
  vqa.setups.push(() => {
    $("settings").addEventListener("keydown", (event) => event.key === "Escape" && toggle(false));
  });
})();
