// Generation settings, stored on the server for each owner.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  let form = null;

  vqa.on("settings", (settings) => {
    vqa.state.settings = settings;
    // A field with the focus may hold a value that is not stored yet.
    const writing = form?.contains(document.activeElement) && !document.activeElement.matches("button");
    if (!writing) redraw();
  });
  /** Shows what is stored, except where that would lose a refused text. */
  const redraw = () => form && !form.querySelector(".refused") && vqa.redraw($("settings"), draw);

  vqa.on("do:settings", () => toggle($("settings").hidden));
  function toggle(open) {
    $("settings").hidden = !open;
    document.querySelector("[data-do=settings]").setAttribute("aria-expanded", String(open));
    if (!open) return void document.querySelector("[data-do=settings]").focus();
    vqa.send("act", { do: "settings" }); // the model's defaults, in case it was loaded meanwhile
    draw();
    form.querySelector("select, input, textarea").focus();
  }

  /** Stores a choice or a number; where it is refused, the form shows again what is stored. */
  async function save(change) {
    if (!(await vqa.send("act", { do: "settings", ...change }))) redraw();
  }

  function number(name, label, hint, { min, max, step, whole }) {
    const { settings } = vqa.state;
    const show = () => (box.value = vqa.state.settings[name] ?? "");
    const own = settings.defaults?.[name];
    const box = el("input", { type: "number", min, max, step, id: `set-${name}`, inputmode: "decimal",
      placeholder: own === null || own === undefined ? t("settings.default") : t("settings.defaultValue", { value: own }) });
    show();
    box.addEventListener("change", () => {
      const value = box.value === "" ? null : Number(box.value);
      const { badInput, rangeUnderflow, rangeOverflow } = box.validity; // the step is for the arrows only
      if (badInput || rangeUnderflow || rangeOverflow || (whole && value !== null && !Number.isInteger(value))) {
        vqa.toast(t(whole ? "settings.wholeRange" : "settings.range", { name: label, min, max }), "error");
        return show();
      }
      save({ [name]: value });
    });
    return el("div.field", {}, el("label", { for: `set-${name}` }, label), box, el("small", {}, hint));
  }

  function draw() {
    const { settings } = vqa.state;
    const style = el("select", { id: "set-style", onchange: (event) => save({ style: event.target.value }) },
      el("option", { value: "sentence" }, t("settings.sentence")), el("option", { value: "short" }, t("settings.short")));
    style.value = settings.style || "sentence";
    const detail = el("select", { id: "set-detail", onchange: (event) => save({ detail: event.target.value }) },
      el("option", { value: "standard" }, t("settings.detailStandard")), el("option", { value: "low" }, t("settings.detailLow")));
    detail.value = settings.detail || "standard";
    const system = el("textarea", { id: "set-system", rows: 4, placeholder: t("settings.systemExample"),
      onchange: () => vqa.save(system.parentElement, "act", { do: "settings", system: system.value || null }) });
    system.value = settings.system || "";
    const { names, chosen } = vqa.language;
    const language = el("select", { id: "set-language", onchange: (event) => vqa.language.choose(event.target.value) },
      el("option", { value: "" }, t("settings.asBrowser")),
      ...Object.entries(names).map(([tag, name]) => el("option", { value: tag, lang: tag }, name)));
    language.value = chosen in names ? chosen : "";
    form = el("form", { onsubmit: (event) => event.preventDefault() },
      el("header", {}, el("h2", {}, t("settings.title")),
        el("button.icon", { type: "button", "aria-label": t("settings.close"), onclick: () => toggle(false) }, icon("x"))),
      el("div.field", {}, el("label", { for: "set-style" }, t("settings.style")), style),
      !settings.low_detail ? null
        : el("div.field", {}, el("label", { for: "set-detail" }, t("settings.detail")), detail, el("small", {}, t("settings.detailHint"))),
      settings.system_prompts === false ? null
        : el("div.field", {}, el("label", { for: "set-system" }, t("settings.system")), system,
          el("small", {}, t("settings.systemHint"))),
      number("temperature", t("settings.temperature"), t("settings.temperatureHint"), { min: 0, max: 5, step: 0.05 }),
      number("top_p", t("settings.topP"), t("settings.topPHint"), { min: 0.05, max: 1, step: 0.05 }),
      number("max_new_tokens", t("settings.longest"), t("settings.longestHint"), { min: 1, max: 2048, step: 1, whole: true }),
      number("seed", t("settings.seed"), t("settings.seedHint"), { min: 0, max: 2 ** 31, step: 1, whole: true }),
      el("button.chip", { type: "button", onclick: () => {
        form.querySelector(".refused")?.remove();
        save({ system: null, temperature: null, top_p: null, max_new_tokens: null, seed: null, style: null, detail: null });
      } }, t("settings.reset")),
      el("div.field", {}, el("label", { for: "set-language" }, t("settings.language")), language));
    $("settings").replaceChildren(form);
  }
  vqa.setups.push(() => {
    $("settings").addEventListener("keydown", (event) => event.key === "Escape" && toggle(false));
  });
})();
