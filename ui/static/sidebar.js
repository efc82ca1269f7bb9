// Conversation list, model picker, and the empty screen.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;

  // -- conversations -------------------------------------------------------------------------------

  vqa.on("list", (list) => {
    vqa.state.list = list;
    drawList();
  });
  vqa.on("view", () => drawList());

  let found = null; // the server's search in questions and answers: {words, chats}
  let typing = null;
  const searchWords = () => $("search").value.trim();

  function search() {
    clearTimeout(typing);
    const words = searchWords();
    if (words) typing = setTimeout(() => vqa.send("act", { do: "search", words }), 150);
    else drawList();
  }
  vqa.on("found", (what) => {
    found = what;
    if (found.words === searchWords()) drawList();
  });

  function drawList() {
    if ($("list").querySelector("input, .menu")) return; // in use; redrawn afterwards
    if ($("list").querySelector("button:active")) return void setTimeout(drawList, 200); // a click is in progress
    vqa.redraw($("list"), drawRows);
  }

  function drawRows() {
    const rows = searchWords() ? vqa.state.list.filter((row) => found?.chats.includes(row.id)) : vqa.state.list;
    $("search").hidden = vqa.state.list.length < 2;
    $("list").replaceChildren(...rows.map(rowOf));
    if (!rows.length && searchWords()) $("list").append(el("li.note", {}, t("sidebar.nothingFound")));
  }

  function rowOf(row) {
    const shown = vqa.state.view?.conversation === row.id;
    const when = new Date(1000 * row.when);
    const open = el("button.title",
      { dir: "auto", title: `${row.title}\n${when.toLocaleString(vqa.locale)}`, "aria-current": shown ? "true" : null,
        onclick: () => {
          vqa.open(row.id);
          closeIfNarrow();
          if (!narrow.matches) vqa.focusView();
        } },
      row.title);
    const menu = el("button.icon",
      { "aria-label": t("sidebar.moreFor", { title: row.title }), "aria-haspopup": "menu", title: t("sidebar.more"),
        onclick: (event) => openMenu(event.currentTarget, row) },
      icon("more"));
    return el(`li${shown ? ".shown" : ""}`, { "data-chat": row.id }, open,
      el("time.when", { datetime: when.toISOString() }, short(when)), menu);
  }

  /** Formats a date as time (today), day (this year) or year. */
  function short(when) {
    const now = new Date();
    if (when.toDateString() === now.toDateString()) {
      return when.toLocaleTimeString(vqa.locale, { hour: "2-digit", minute: "2-digit", hour12: false });
    }
    if (when.getFullYear() !== now.getFullYear()) return when.toLocaleDateString(vqa.locale, { year: "numeric" });
    return when.toLocaleDateString(vqa.locale, { day: "numeric", month: "short" });
  }

  function openMenu(button, row) {
    closeMenu();
    const file = (kind) => () => {
      const link = el("a", { href: `vqa/conversations/${row.id}.${kind}`, download: true });
      document.body.append(link);
      link.click();
      link.remove();
    };
    const item = () => $("list").querySelector(`[data-chat="${row.id}"]`); // may have been redrawn
    const remove = () => {
      item()?.querySelector("[aria-haspopup]").focus(); // gets the focus back if the chat is kept
      vqa.confirm(t("sidebar.deleteChat"), row.title, () =>
        vqa.send("act", { do: "delete", conversation: row.id, shown: vqa.state.view?.conversation }));
    };
    const entry = (name, words, onSelect) =>
      el("button", { role: "menuitem", onclick: () => (closeMenu(), onSelect()) }, icon(name), words);
    const menu = el("div.menu", { role: "menu", id: "menu" },
      entry("pen", t("sidebar.rename"), () => item() && rename(item(), row)),
      entry("save", t("sidebar.saveHtml"), file("html")),
      entry("save", t("sidebar.saveJson"), file("json")),
      entry("bin", t("page.delete"), remove));
    button.closest("li").append(menu);
    menu.querySelector("button").focus();
    menu.addEventListener("keydown", (event) => {
      const items = [...menu.querySelectorAll("button")];
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
      }
      if (event.key === "Escape") {
        closeMenu();
        item()?.querySelector("[aria-haspopup]").focus();
      }
    });
    menu.addEventListener("focusout", ({ relatedTarget: to }) => {
      if (to && !menu.contains(to)) closeMenu();
    });
  }
  function closeMenu() {
    if (!$("menu")) return;
    $("menu").remove();
    drawList();
  }

  function rename(item, row) {
    const box = el("input", { "aria-label": t("sidebar.newTitle"), maxlength: 120 });
    box.value = row.title;
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      const title = box.value.trim();
      if (keep && title && title !== row.title) {
        // Only the list is redrawn; the open conversation stays.
        vqa.send("act", { do: "rename", conversation: row.id, title, shown: vqa.state.view?.conversation ?? null });
        const old = vqa.state.list.find((one) => one.id === row.id);
        if (old) old.title = title;
      }
      box.remove();
      drawList();
    };
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault(); // the key would click the title
      end(event.key === "Enter");
      $("list").querySelector(`[data-chat="${row.id}"] .title`)?.focus();
    });
    box.addEventListener("blur", () => end(true));
    item.replaceChildren(box);
    box.select();
  }

  const narrow = matchMedia("(max-width: 820px)");
  const closeIfNarrow = () => narrow.matches && $("vqa").classList.remove("side-on");
  vqa.on("do:side", () => {
    const shell = $("vqa");
    if (narrow.matches) shell.classList.toggle("side-on");
    else shell.classList.toggle("side-off");
    const open = narrow.matches ? shell.classList.contains("side-on") : !shell.classList.contains("side-off");
    if (open) document.querySelector("#side .new").focus();
  });
  vqa.on("do:new", () => {
    vqa.show("chat", true);
    vqa.newChat();
    closeIfNarrow();
    $("question").focus();
  });
  vqa.on("shown", closeIfNarrow);

  vqa.on("do:import", () => $("import-file").click());
  vqa.setups.push(() => {
    $("search").addEventListener("input", search);
    document.addEventListener("click", (event) => {
      if (!event.target.closest("#menu, [aria-haspopup=menu]")) closeMenu();
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
    $("model-name").textContent = loadingModel ? t("models.loading", { model: loadingModel.label }) : models.label;
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
        el("span", {}, choice.label), el("small", {}, choice.shared === "by others" ? t("models.byOthers") : vqa.message(choice.detail)));
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
    $("models").addEventListener("keydown", (event) => {
      const items = [...$("models").querySelectorAll("[role=option]")];
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step && items.length) {
        event.preventDefault();
        items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
      }
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
        { onclick: () => vqa.askAbout(example.picture, example.question) },
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
