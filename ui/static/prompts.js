// The system prompt of one chat, and the prompts that the visitor keeps for others.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  const EXAMPLES = ["prompts.brief", "prompts.unsure", "prompts.blind", "prompts.transcribe"];
  let waiting = null; // the prompt of a new chat, until its first question creates it

  const offered = () => vqa.state.settings.system_prompts !== false;
  const ofChat = () => (vqa.state.view?.conversation ? (vqa.state.view.system ?? null) : waiting);
  /** Returns the prompt for a chat that the next question creates, or null. */
  vqa.promptOfNewChat = () => (offered() ? waiting : null);

  /** Shows whether this chat has a prompt of its own; nothing where the model cannot follow one. */
  function drawInstructions() {
    const prompt = ofChat();
    const empty = !vqa.state.view?.turns.length;
    const place = $("instructions").parentElement;
    if (empty) $("empty").append(place);
    else $("log").before(place);
    $("instructions").hidden = !offered() || (!prompt && !empty);
    $("instructions").lastElementChild.textContent = prompt || t("prompts.title");
    $("instructions").title = t("prompts.title");
  }
  vqa.on("settings", drawInstructions);
  vqa.on("view", ({ conversation }, { navigated }) => {
    if (conversation || navigated) waiting = null;
    drawInstructions();
  });

  vqa.on("do:instructions", () => {
    const { view, settings } = vqa.state;
    const chat = view?.conversation ?? null;
    const box = el("textarea", { rows: 4, "aria-label": t("prompts.title"), placeholder: settings.system || t("settings.systemExample") });
    box.value = ofChat() ?? "";
    const use = (prompt) => {
      box.value = prompt;
      box.focus();
    };
    const library = el("div.library");
    const show = (prompts) => {
      vqa.state.settings.prompts = prompts;
      vqa.redraw(library, drawLibrary);
    };
    const keep = async (prompts) => {
      const before = vqa.state.settings.prompts;
      show(prompts);
      if (!(await vqa.send("act", { do: "settings", prompts }))) show(before);
    };
    const choice = (prompt, ...more) => el("li", {}, el("button.chip", { title: prompt, onclick: () => use(prompt) }, el("span", { dir: "auto" }, prompt)), ...more);
    function drawLibrary() {
      const kept = vqa.state.settings.prompts || [];
      const own = kept.map((prompt) => choice(prompt,
        el("button.icon", { "aria-label": t("prompts.forget", { prompt }), title: t("page.delete"), onclick: () => keep(kept.filter((one) => one !== prompt)) }, icon("x"))));
      library.replaceChildren(
        ...(own.length ? [el("h3", {}, t("prompts.library")), el("ul", {}, ...own)] : []),
        el("h3", {}, t("prompts.examples")), el("ul", {}, ...EXAMPLES.map((key) => choice(t(key)))));
    }
    drawLibrary();
    const field = el("div.prompt", {}, box);
    vqa.sheet(t("prompts.title"), el("p.note", {}, t("prompts.hint")), field,
      el("div.actions", {},
        el("button.primary", { onclick: async () => {
          const prompt = box.value.trim() || null;
          if (!chat) waiting = prompt;
          else if (!(await vqa.save(field, "act", { do: "system", conversation: chat, system: prompt }))) return box.focus();
          $("sheet").close();
          drawInstructions();
          vqa.focusView();
        } }, t("page.save")),
        el("button.chip", { onclick: () => {
          const prompt = box.value.trim();
          const kept = vqa.state.settings.prompts || [];
          if (prompt && !kept.includes(prompt)) keep([...kept, prompt]);
        } }, t("prompts.keep"))),
      library);
    box.focus();
  });
})();
