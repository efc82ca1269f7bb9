// The list of chats: search, open, pin, archive, rename, export, delete and undo.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  const shownChat = () => vqa.state.view?.conversation ?? null;

  vqa.on("list", (list) => {
    for (const row of list) row.title = vqa.message(row.title);
    vqa.state.list = list;
    for (const id of selected?.keys() ?? []) if (!list.some((row) => row.id === id)) selected.delete(id);
    drawList();
  });
  vqa.on("view", () => drawList());

  // -- search --------------------------------------------------------------------------------------

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

  /** Opens the sidebar at its search box, or at its first button while there is nothing to search. */
  vqa.focusSearch = () => {
    vqa.openSide(true);
    const box = $("search").hidden ? document.querySelector("#side .new") : $("search");
    box.focus();
    box.select?.();
  };

  // -- the list ------------------------------------------------------------------------------------

  let archiveOpen = false;
  let selected = null; // Map of the selected rows by id while several are being selected

  function drawList() {
    if ($("list").querySelector("li > input, .menu")) return; // in use; redrawn afterwards
    if ($("list").querySelector("button:active")) return void setTimeout(drawList, 200); // a click is in progress
    vqa.redraw($("list"), drawRows);
    drawSelection();
  }

  function drawRows() {
    const { list } = vqa.state;
    $("search").hidden = $("export-all").hidden = !list.length;
    if (searchWords()) {
      const rows = list.filter((row) => found?.chats.includes(row.id));
      $("list").replaceChildren(...rows.map(rowOf));
      if (!rows.length) $("list").append(el("li.note", {}, t("sidebar.nothingFound")));
      return;
    }
    const archived = list.filter((row) => row.archived);
    $("list").replaceChildren(...list.filter((row) => !row.archived).map(rowOf));
    if (!archived.length) return;
    const fold = el("button.fold", { "aria-expanded": String(archiveOpen), onclick: () => {
      archiveOpen = !archiveOpen;
      drawList();
    } }, icon("archive"), t("sidebar.archived", { count: archived.length }));
    $("list").append(el("li.archived", {}, fold), ...(archiveOpen ? archived.map(rowOf) : []));
  }

  function rowOf(row) {
    const shown = shownChat() === row.id;
    const when = new Date(1000 * row.when);
    const tip = [row.title, row.answer, when.toLocaleString(vqa.locale)].filter(Boolean).join("\n");
    const title = el("button.title",
      { dir: "auto", title: tip, "aria-current": shown && !selected ? "true" : null,
        role: selected ? "checkbox" : null, "aria-checked": selected ? String(selected.has(row.id)) : null,
        onclick: () => (selected ? select(row) : open(row)) },
      row.title);
    const picture = row.picture
      ? el("img.thumbnail", { src: `vqa/pictures/${row.picture}?size=small`, alt: "", loading: "lazy" })
      : el("span.thumbnail", {}, icon("chat"));
    const menu = el("button.icon",
      { "aria-label": t("sidebar.moreFor", { title: row.title }), "aria-haspopup": "menu", title: t("sidebar.more"), tabindex: -1,
        onclick: (event) => openMenu(event.currentTarget, row) },
      icon("more"));
    return el(`li${shown && !selected ? ".shown" : ""}`,
      { "data-chat": row.id, oncontextmenu: (event) => {
        if (selected) return;
        event.preventDefault();
        openMenu(menu, row);
      } },
      selected ? el("span.thumbnail.box", { "aria-hidden": "true" }, selected.has(row.id) ? icon("check") : null) : picture,
      el("div.texts", {}, title, row.answer ? el("p.snippet", { dir: "auto" }, row.answer) : null),
      row.pinned ? el("span.pin", { role: "img", "aria-label": t("sidebar.pinned") }, icon("pin")) : null,
      el("time.when", { datetime: when.toISOString() }, short(when)), selected ? null : menu);
  }

  function open(row) {
    vqa.open(row.id);
    if (!vqa.closeNarrowSide()) vqa.focusView();
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

  // -- the menu of a chat --------------------------------------------------------------------------

  const item = (row) => $("list").querySelector(`[data-chat="${row.id}"]`); // may have been redrawn

  function openMenu(button, row) {
    closeMenu();
    const file = (kind) => () => {
      const link = el("a", { href: `vqa/conversations/${row.id}.${kind}`, download: true });
      document.body.append(link);
      link.click();
      link.remove();
      item(row)?.querySelector(".title").focus();
    };
    const entry = (name, words, onSelect) =>
      el("button", { role: "menuitem", onclick: () => (closeMenu(), onSelect()) }, icon(name), words);
    const menu = el("div.menu", { role: "menu", id: "menu" },
      entry("pen", t("sidebar.rename"), () => item(row) && rename(item(row), row)),
      entry("pin", t(row.pinned ? "sidebar.unpin" : "sidebar.pin"), () => {
        vqa.send("act", { do: "pin", conversation: row.id, pinned: !row.pinned });
        item(row)?.querySelector(".title").focus();
      }),
      entry("archive", t(row.archived ? "sidebar.unarchive" : "sidebar.archive"), () => archive([row], !row.archived)),
      entry("save", t("sidebar.saveHtml"), file("html")),
      entry("save", t("sidebar.saveMarkdown"), file("md")),
      entry("save", t("sidebar.saveJson"), file("json")),
      entry("check", t("sidebar.selectSeveral"), () => {
        selected = new Map([[row.id, row]]);
        drawList();
        item(row)?.querySelector(".title").focus();
      }),
      entry("bin", t("page.delete"), () => remove([row])));
    (item(row) ?? button.closest("li")).append(menu);
    menu.querySelector("button").focus();
    menu.scrollIntoView({ block: "nearest" });
    vqa.listKeys(menu, "button");
    menu.addEventListener("keydown", (event) => {
      event.stopPropagation(); // the keys of the list below
      if (event.key !== "Escape") return;
      closeMenu();
      item(row)?.querySelector("[aria-haspopup]").focus();
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

  function rename(node, row, text = row.title) {
    const box = el("input", { "aria-label": t("sidebar.newTitle"), maxlength: 120 });
    box.value = text;
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      const title = box.value.trim();
      if (keep && title && title !== row.title) {
        // Only the list is redrawn; the open conversation stays.
        sendChange({ do: "rename", conversation: row.id, title, shown: shownChat() }).then((accepted) => {
          // The box comes back with the text, unless the person went on to something else.
          if (!accepted && item(row)?.contains(document.activeElement)) rename(item(row), row, title);
        });
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
      item(row)?.querySelector(".title").focus();
    });
    box.addEventListener("blur", () => end(true));
    node.replaceChildren(box);
    box.select();
  }

  // -- several chats -------------------------------------------------------------------------------

  function select(row) {
    if (!selected.delete(row.id)) selected.set(row.id, row);
    drawList();
  }

  function endSelection() {
    const [first] = selected.keys();
    selected = null;
    drawList();
    (first && item({ id: first })?.querySelector(".title") || document.querySelector("#side .new")).focus();
  }

  function drawSelection() {
    $("selection").hidden = !selected;
    if (!selected) return;
    const rows = [...selected.values()];
    const withRows = (action) => () => {
      selected = null;
      action(rows);
    };
    const archived = rows.length > 0 && rows.every((row) => row.archived);
    vqa.redraw($("selection"), () => $("selection").replaceChildren(
      el("span", { role: "status" }, t("sidebar.selected", { count: rows.length })),
      el("div.actions", {},
        el("button.chip", { disabled: !rows.length, onclick: withRows((chosen) => archive(chosen, !archived)) },
          t(archived ? "sidebar.unarchive" : "sidebar.archive")),
        el("button.chip", { disabled: !rows.length, onclick: withRows(remove) }, t("page.delete")),
        el("button.link", { onclick: endSelection }, t("page.cancel")))));
  }

  function archive(rows, archived) {
    vqa.send("act", { do: "archive", conversations: rows.map((row) => row.id), archived });
    drawList();
    $("list").querySelector(".title")?.focus();
  }

  // -- deleting, and undoing it --------------------------------------------------------------------

  let undoTimer = null;
  let undoSeconds = 0;
  vqa.on("undo_seconds", (seconds) => (undoSeconds = seconds));

  function remove(rows) {
    const chats = rows.map((row) => row.id);
    const shown = chats.includes(shownChat()) ? shownChat() : null;
    const sent = sendChange({ do: "delete", conversations: chats, shown: shownChat() });
    vqa.state.list = vqa.state.list.filter((row) => !chats.includes(row.id));
    drawList();
    const withdraw = offerUndo(chats, shown);
    sent.then((accepted) => accepted || withdraw());
  }

  /** Sends a change that the list shows before the reply; a refused one is taken out of the list again. */
  async function sendChange(request) {
    const accepted = await vqa.send("act", request);
    if (!accepted) vqa.send("act", { do: "refresh", conversation: shownChat() });
    return accepted;
  }

  /**
   * Offers to undo a deletion until the server removes the chats; an earlier offer ends.
   * Returns a function that withdraws the offer.
   */
  function offerUndo(chats, shown) {
    clearTimeout(undoTimer);
    const end = () => ($("undo").hidden = true);
    const undo = el("button.link", { onclick: () => {
      clearTimeout(undoTimer);
      end();
      vqa.send("act", { do: "undo-delete", conversations: chats });
      if (shown) vqa.open(shown);
      vqa.focusView();
    } }, t("teach.undo"));
    const left = el("span.left", { "aria-hidden": "true" });
    left.style.animationDuration = `${undoSeconds}s`;
    $("undo").replaceChildren(el("span", {}, t("sidebar.deleted", { count: chats.length })), undo, left);
    $("undo").hidden = false;
    undo.focus();
    undoTimer = setTimeout(end, 1000 * undoSeconds);
    return () => {
      if (!undo.isConnected || $("undo").hidden) return; // a later deletion has its own offer
      clearTimeout(undoTimer);
      end();
    };
  }

  vqa.setups.push(() => {
    $("search").addEventListener("input", search);
    $("search").addEventListener("keydown", (event) => {
      const first = $("list").querySelector(".title");
      if (event.key === "Enter") first?.click();
      if (event.key === "ArrowDown") first?.focus();
      if (event.key === "Escape") {
        $("search").value = "";
        drawList();
        vqa.closeNarrowSide();
        vqa.focusView();
      }
      if (["Enter", "ArrowDown", "Escape"].includes(event.key)) event.preventDefault();
    });
    vqa.listKeys($("list"), ".title");
    $("list").addEventListener("keydown", (event) => {
      const row = event.target.closest("[data-chat]");
      if (!row || event.target.closest("input")) return;
      if (event.key === "ArrowRight") row.querySelector("[aria-haspopup]")?.focus();
      if (event.key === "ArrowLeft") row.querySelector(".title").focus();
      if (event.key === "Escape" && selected) endSelection();
    });
    document.addEventListener("click", (event) => {
      if (!event.target.closest("#menu, [aria-haspopup=menu]")) closeMenu();
    });
  });
})();
