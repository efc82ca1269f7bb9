// Opening and closing the sidebar, the model picker, and the empty screen.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;

  const narrow = matchMedia("(max-width: 820px)");
  /** Closes the sidebar where it covers the page, and returns whether it does. */
  vqa.closeNarrowSide = () => {
    if (narrow.matches) $("vqa").classList.remove("side-on");
    return narrow.matches;
  };
  vqa.openSide = (open) => {
    if (narrow.matches) $("vqa").classList.toggle("side-on", open);
    else $("vqa").classList.toggle("side-off", !open);
  };
  vqa.on("do:side", () => {
    const shell = $("vqa").classList;
    const open = narrow.matches ? !shell.contains("side-on") : shell.contains("side-off");
    vqa.openSide(open);
    if (open) document.querySelector("#side .new").focus();
  });
  vqa.on("do:new", () => {
    vqa.show("chat", true);
    vqa.newChat();
    vqa.closeNarrowSide();
    $("question").focus();
  });
  vqa.on("shown", vqa.closeNarrowSide);

  vqa.on("do:import", () => $("import-file").click());
  vqa.setups.push(() => {
    document.addEventListener("click", (event) => {
      if (!event.target.closest(".picker")) closeModels();
    });
    $("import-file").addEventListener("change", async () => {
      const [file] = $("import-file").files;
      $("import-file").value = "";
      if (!file) return;
      const found = await vqa.upload("vqa/conversations", file);
      if (!found) return;
      vqa.open(found.conversation);
    });
  });

  // -- models --------------------------------------------------------------------------------------

  let pollTimer = null;
  vqa.on("models", (models, { channel }) => {
    vqa.state.models = models;
    const { loading } = models;
    const loadingModel = loading || (models.phase === "loading" && models);
    $("model-name").textContent = loadingModel ? t("models.loading", { model: loadingModel.label }) : vqa.message(models.label);
    $("model-share").textContent = loadingModel?.share ? vqa.percent(loadingModel.share) : "";
    $("model").dataset.phase = loading ? "loading" : models.phase;
    $("model").title = vqa.message(loadingModel?.message ?? models.message) || t("models.answers");
    const cancel = document.querySelector("[data-do=cancel-load]");
    if (!loading && cancel === document.activeElement) $("model").focus();
    cancel.hidden = !loading;
    if (!$("models").hidden) drawModels();
    // While a model loads for another tab, poll until it is ready.
    clearTimeout(pollTimer);
    if (loadingModel && channel !== "pick") pollTimer = setTimeout(() => vqa.send("act", { do: "models" }), 600);
  });
  vqa.on("do:cancel-load", () => vqa.send("act", { do: "cancel-load", model: vqa.state.models.loading.key }));

  vqa.on("error", (_, { channel }) => channel === "pick" && vqa.send("act", { do: "models" }));

  /** Returns the model choices by group: [name, choices]. */
  vqa.modelGroups = (choices) => {
    const names = choices.map((choice) => vqa.message(choice.group));
    return [...new Set(names)].map((name) => [name, choices.filter((_, place) => names[place] === name)]);
  };

  let drawn = "";
  function drawModels() {
    const { choices, picked, any } = vqa.state.models;
    const now = JSON.stringify([choices, picked]);
    if (drawn === now) return; // progress updates are frequent, and the user may be choosing
    drawn = now;
    const option = (choice) =>
      el("button",
        { role: "option", "aria-selected": String(choice.key === picked),
          onclick: () => {
            closeModels();
            if (choice.key !== picked) vqa.withModel(choice, (fields) => vqa.send("pick", fields));
          } },
        el("span", {}, vqa.message(choice.label)), el("small", {}, choice.shared === "by others" ? t("models.byOthers") : vqa.message(choice.detail)));
    const groups = vqa.modelGroups(choices).map(([group, members]) =>
      el("div", { role: "group", "aria-label": group },
        el("p.group", { "aria-hidden": "true" }, group), ...members.map(option)));
    const focused = $("models").contains(document.activeElement);
    $("models").replaceChildren(el("div", { role: "listbox", "aria-label": t("models.label") }, ...groups));
    if (focused) $("models").querySelector("[aria-selected=true]")?.focus();
    if (choices.some((choice) => choice.downloaded)) {
      $("models").append(el("button.quiet", { onclick: () => {
        closeModels();
        vqa.showInstalled();
      } }, t("installed.title")));
    }
    if (!any) return;
    const box = el("input", { "aria-label": t("models.hubId"), placeholder: t("models.hubExample") });
    $("models").append(el("form.named", { onsubmit: (event) => {
      event.preventDefault();
      closeModels();
      vqa.withModel({ named: box.value }, (fields) => vqa.send("pick", fields));
    } }, box));
  }

  function closeModels() {
    $("models").hidden = true;
    $("model").setAttribute("aria-expanded", "false");
  }
  vqa.setups.push(() => {
    $("model").addEventListener("click", () => {
      const open = $("models").hidden;
      $("models").hidden = !open;
      $("model").setAttribute("aria-expanded", String(open));
      if (open && vqa.state.models) {
        vqa.send("act", { do: "models" }); // a new one may have been trained
        drawModels();
        $("models").querySelector("[aria-selected=true]")?.focus();
      }
    });
    document.querySelector(".picker").addEventListener("focusout", ({ currentTarget, relatedTarget: to }) => {
      if (to && !currentTarget.contains(to)) closeModels();
    });
    vqa.listKeys($("models"), "[role=option]");
    $("model").addEventListener("keydown", (event) => {
      if (event.key !== "ArrowDown" || !$("models").hidden) return;
      event.preventDefault();
      $("model").click();
    });
    $("models").addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        closeModels();
        $("model").focus();
      }
    });
  });

  // -- the empty screen ----------------------------------------------------------------------------

  let about = "";
  let onlyDrawings = false; // whether the model does not know photographs
  /** Shows what the model knows, or why it did not load. */
  function drawAbout() {
    const { phase, message } = vqa.state.models || {};
    $("about").textContent = phase === "failed" ? vqa.message([...message, { key: "models.pickAnother" }]) : about;
    $("photographs").hidden = phase === "failed" || !onlyDrawings;
  }
  vqa.on("models", drawAbout);

  vqa.on("examples", ({ cards, about: text, only_drawings: only }) => {
    about = vqa.message(text);
    onlyDrawings = only;
    drawAbout();
    const card = (example) =>
      el("button.card",
        { onclick: () => {
          vqa.askAbout(example.picture, example.question);
          vqa.focusView();
        } },
        el("img", { src: `vqa/pictures/${example.picture.digest}?size=small`, alt: "" }),
        el("span", {}, example.question));
    $("cards").replaceChildren(
      ...cards.map(card),
      el("button.card.more", { onclick: () => vqa.send("act", { do: "scene" }) },
        icon("dice"), el("span", {}, t("start.newScene"))));
  });
  vqa.on("scene", ({ picture, question }) => {
    if ($("vqa").dataset.view === "compare") return vqa.compareScene({ picture, question });
    vqa.useScene({ picture, question });
  });
})();
