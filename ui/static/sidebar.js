// Conversations, models, and the empty screen.
"use strict";
(() => {
  const { $, el, icon } = vqa;

  // -- conversations -------------------------------------------------------------------------------

  vqa.on("list", (list) => {
    vqa.state.list = list;
    drawList();
  });
  vqa.on("view", () => drawList());

  function drawList() {
    const wanted = $("search").value.trim().toLowerCase();
    const rows = vqa.state.list.filter((row) => row.title.toLowerCase().includes(wanted));
    $("search").hidden = vqa.state.list.length < 2;
    $("list").replaceChildren(...rows.map(rowOf));
    if (!rows.length && wanted) $("list").append(el("li.note", {}, "Nothing found."));
  }

  function rowOf(row) {
    const shown = vqa.state.view?.conversation === row.id;
    const open = el("button.title",
      { title: row.title, "aria-current": shown ? "true" : null,
        onclick: () => {
          vqa.show("chat");
          vqa.send("act", { do: "open", conversation: row.id });
          closeOnPhone();
        } },
      row.title);
    const menu = el("button.icon",
      { "aria-label": `More for ${row.title}`, "aria-haspopup": "menu", title: "More",
        onclick: (event) => openMenu(event.currentTarget, row) },
      icon("more"));
    return el(`li${shown ? ".shown" : ""}`, {}, open, menu);
  }

  function openMenu(button, row) {
    closeMenu();
    const file = (kind) => () => {
      const link = el("a", { href: `vqa/conversations/${row.id}.${kind}`, download: true });
      document.body.append(link);
      link.click();
      link.remove();
    };
    const remove = () => {
      const shown = vqa.state.view?.conversation;
      vqa.send("act", { do: "delete", conversation: row.id, shown });
    };
    const item = (name, words, deed) =>
      el("button", { role: "menuitem", onclick: () => (closeMenu(), deed()) }, icon(name), words);
    const menu = el("div.menu", { role: "menu", id: "menu" },
      item("pen", "Rename", () => rename(button.closest("li"), row)),
      item("save", "Save as a web page", file("html")),
      item("save", "Save as JSON", file("json")),
      item("bin", "Delete", remove));
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
        button.focus();
      }
    });
  }
  const closeMenu = () => $("menu")?.remove();

  function rename(item, row) {
    const box = el("input", { "aria-label": "New title", maxlength: 120 });
    box.value = row.title;
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      if (keep && box.value.trim() && box.value !== row.title) {
        // The list alone is drawn anew: the conversation that is shown stays.
        vqa.send("act", { do: "rename", conversation: row.id, title: box.value, shown: vqa.state.view?.conversation ?? null });
      } else drawList();
    };
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    });
    box.addEventListener("blur", () => end(true));
    item.replaceChildren(box);
    box.select();
  }

  const phone = matchMedia("(max-width: 820px)");
  const closeOnPhone = () => phone.matches && $("vqa").classList.remove("side-on");
  vqa.on("do:side", () => {
    const shell = $("vqa");
    if (phone.matches) shell.classList.toggle("side-on");
    else shell.classList.toggle("side-off");
    const open = phone.matches ? shell.classList.contains("side-on") : !shell.classList.contains("side-off");
    if (open) document.querySelector("#side .new").focus();
  });
  vqa.on("do:new", () => {
    vqa.show("chat");
    vqa.send("act", { do: "new" });
    closeOnPhone();
    $("question").focus();
  });
  vqa.on("shown", closeOnPhone);

  vqa.on("do:import", () => $("import-file").click());
  vqa.starters.push(() => {
    $("search").addEventListener("input", drawList);
    document.addEventListener("click", (event) => {
      if (!event.target.closest("#menu, [aria-haspopup=menu]")) closeMenu();
      if (!event.target.closest(".picker")) closeModels();
    });
    $("import-file").addEventListener("change", async () => {
      const [file] = $("import-file").files;
      $("import-file").value = "";
      if (!file) return;
      const answer = await fetch("vqa/conversations", { method: "POST", body: file });
      const found = await answer.json().catch(() => ({}));
      if (answer.ok) vqa.send("act", { do: "open", conversation: found.conversation });
      else vqa.toast(found.error || "The file could not be read.", "error");
    });
  });

  // -- models --------------------------------------------------------------------------------------

  vqa.on("models", (models) => {
    vqa.state.models = models;
    const loading = models.loading;
    const waits = loading || (models.phase === "loading" && models);
    $("model-name").textContent = waits ? `Loading ${waits.label} …` : models.label;
    $("model").dataset.phase = loading ? "loading" : models.phase;
    $("model").title = loading?.message || models.message || "The model that answers";
    if (!$("models").hidden) drawModels();
    // While the first model loads, look again until it stands.
    if (models.phase === "loading" && !loading) {
      setTimeout(() => vqa.send("act", { do: "models" }), 600);
    }
  });

  vqa.on("error", (_, { wire }) => wire === "pick" && vqa.send("act", { do: "models" }));

  function drawModels() {
    const { choices, picked, loading } = vqa.state.models;
    const parts = [];
    let group = "";
    for (const choice of choices) {
      if (choice.group !== group) parts.push(el("p.group", {}, (group = choice.group)));
      parts.push(
        el("button",
          { role: "option", "aria-selected": String(choice.key === picked),
            onclick: () => {
              closeModels();
              if (choice.key !== picked) vqa.send("pick", { model: choice.key });
            } },
          el("span", {}, choice.label), el("small", {}, choice.detail)),
      );
    }
    if (vqa.state.models.any) {
      const box = el("input", { "aria-label": "Hub id", placeholder: "owner/name from the hub" });
      parts.push(el("form.named", { onsubmit: (event) => {
        event.preventDefault();
        closeModels();
        vqa.send("pick", { named: box.value });
      } }, box));
    }
    if (loading) {
      parts.push(
        el("div.loading", {}, el("span", {}, `${loading.message} ${loading.share ? Math.round(loading.share * 100) + " %" : ""}`),
          el("button.link", { onclick: () => vqa.send("act", { do: "cancel-load", model: loading.key }) }, "Cancel")),
      );
    }
    $("models").replaceChildren(...parts);
  }

  function closeModels() {
    $("models").hidden = true;
    $("model").setAttribute("aria-expanded", "false");
  }
  vqa.starters.push(() => {
    $("model").addEventListener("click", () => {
      const open = $("models").hidden;
      $("models").hidden = !open;
      $("model").setAttribute("aria-expanded", String(open));
      if (open && vqa.state.models) {
        drawModels();
        $("models").querySelector("[aria-selected=true]")?.focus();
      }
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

  vqa.on("examples", ({ cards, about }) => {
    $("about").textContent = about;
    const card = (example) =>
      el("button.card",
        { onclick: () => vqa.askAbout(example.picture, example.question) },
        el("img", { src: `vqa/pictures/${example.picture.digest}?size=small`, alt: "" }),
        el("span", {}, example.question));
    $("cards").replaceChildren(
      ...cards.map(card),
      el("button.card.more", { onclick: () => vqa.send("act", { do: "scene" }) },
        icon("dice"), el("span", {}, "Draw me a new scene")));
  });
  vqa.on("scene", ({ picture, question }) => {
    if ($("vqa").dataset.view === "compare") return vqa.compareScene({ picture, question });
    vqa.attach(picture);
    vqa.putQuestion(question);
  });
})();
