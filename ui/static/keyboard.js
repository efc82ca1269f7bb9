// The keyboard: shortcuts and their help, moving within lists, and where the focus goes.
"use strict";
(() => {
  const { $, el, t } = vqa;

  // -- focus ---------------------------------------------------------------------------------------

  const touch = !matchMedia("(hover: hover)").matches; // a text box would open the keyboard on the screen

  /** Focuses the question box, or the heading of another view. */
  vqa.focusView = () => {
    const part = $("vqa").dataset.view;
    (part === "chat" ? $(touch ? "scroll" : "question") : $(`view-${part}`).querySelector("h1")).focus();
  };
  vqa.on("do:skip", vqa.focusView);

  const focused = new Map(); // root -> label and index of the element that had the focus before a redraw
  let waiting = null; // has the focus until the control that had it is drawn again
  const nobody = () => !document.activeElement || document.activeElement === document.body;

  /** Redraws an element and gives the focus back to the control that had it, once it exists again. */
  vqa.redraw = (root, draw) => {
    const nameOf = (node) => node.getAttribute("aria-label") || node.innerText;
    const named = (name) => [...root.querySelectorAll("button, summary, input")].filter((node) => nameOf(node) === name);
    const had = document.activeElement;
    if (root.contains(had)) focused.set(root, { name: nameOf(had), place: named(nameOf(had)).indexOf(had) });
    draw();
    if (!nobody() && document.activeElement !== waiting) return void focused.delete(root);
    const { name, place } = focused.get(root) || {};
    const found = name ? named(name) : [];
    const node = found[place] ?? found.at(-1);
    (node?.disabled ? node.parentElement.querySelector("button:enabled") : node)?.focus({ preventScroll: true });
  };

  let last = null; // the latest element with the focus
  let inSettings = false; // whether it was there
  /** Moves the focus on if its element was removed, hidden or disabled: otherwise it would fall to the body. */
  function keepFocus() {
    if (!last || !(nobody() || document.activeElement === last)) return;
    if (last.isConnected && last.checkVisibility({ visibilityProperty: true }) && !last.disabled) return;
    if (!$("sheet").open && $("sheet").contains(last)) return; // its `close` event, a frame later, gives the focus back
    const around = $("sheet").open ? $("sheet") : inSettings && !$("settings").hidden && $("settings");
    if (around) around.querySelector("header button").focus();
    else vqa.focusView();
    waiting = document.activeElement;
  }

  vqa.setups.push(() => {
    document.addEventListener("focusin", ({ target }) => {
      last = target;
      inSettings = $("settings").contains(target);
    });
    for (const kind of ["keydown", "pointerdown"]) document.addEventListener(kind, () => (waiting = null), true);
    let checking = false;
    const check = () => {
      if (checking) return;
      checking = true;
      // After the code that changed the page, and the browser, had the chance to move it.
      setTimeout(() => {
        checking = false;
        keepFocus();
      }, 30);
    };
    new MutationObserver(check).observe($("vqa"), {
      childList: true, subtree: true, attributes: true, attributeFilter: ["hidden", "disabled", "open", "class", "data-view"],
    });
  });

  // -- lists ---------------------------------------------------------------------------------------

  const PAUSE = 700; // ms after which typing begins a new word

  /** Moves the focus among the items of a list: arrows, Home, End, and the first letters of an item. */
  vqa.listKeys = (list, selector) => {
    let typed = "";
    let timer = null;
    list.addEventListener("keydown", (event) => {
      const items = [...list.querySelectorAll(selector)];
      const at = items.indexOf(document.activeElement);
      const { key } = event;
      if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
      let to = { ArrowDown: (at + 1) % items.length, ArrowUp: at - 1, Home: 0, End: -1 }[key];
      if (to === undefined && key.length === 1 && (key !== " " || typed)) {
        clearTimeout(timer);
        timer = setTimeout(() => (typed = ""), PAUSE);
        typed += key.toLocaleLowerCase(vqa.locale);
        const begin = typed.replace(/^(.)\1+$/, "$1"); // the same letter again goes to the next item
        const from = begin.length > 1 ? at : at + 1;
        const order = [...items.slice(from), ...items.slice(0, from)];
        const found = order.find((item) => item.innerText.trim().toLocaleLowerCase(vqa.locale).startsWith(begin));
        if (found) to = items.indexOf(found);
      }
      if (to === undefined) return;
      event.preventDefault();
      items.at(to).focus();
    });
  };

  // -- shortcuts -----------------------------------------------------------------------------------

  const mac = /mac|iphone|ipad/i.test(navigator.userAgentData?.platform ?? navigator.platform);
  const CONTROL = mac ? "⌘" : t("keys.control");
  const SHIFT = mac ? "⇧" : t("keys.shift");
  const HELP = [
    [[CONTROL, "K"], "sidebar.search"],
    [[CONTROL, SHIFT, "O"], "sidebar.newChat"],
    [[CONTROL, "/"], "keys.title"],
    [["Enter"], "composer.ask"],
    [[SHIFT, "Enter"], "keys.newLine"],
    [["↑"], "keys.editLast"],
    [["Esc"], "keys.stop"],
    [["↑", "↓"], "keys.list"],
    [["→"], "keys.more"],
  ];
  const shortcut = { k: () => vqa.focusSearch(), O: () => vqa.emit("do:new"), "/": () => vqa.emit("do:keys") };

  vqa.on("do:keys", () =>
    vqa.sheet(t("keys.title"),
      el("dl.keys", {}, ...HELP.flatMap(([keys, text]) => [
        el("dt", {}, ...keys.map((key) => el("kbd", {}, key))), el("dd", {}, t(text))]))));

  vqa.setups.push(() => {
    // Keys that choose among the words of an input method mean nothing else. Safari says so by the code.
    document.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) event.stopPropagation();
    }, true);
    document.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || event.altKey || $("sheet").open) return;
      const control = mac ? event.metaKey : event.ctrlKey;
      const written = event.target.closest("input, textarea, select");
      const letter = event.key.length === 1 ? (event.shiftKey ? event.key.toUpperCase() : event.key.toLowerCase()) : "";
      // With Shift, "/" is another character on many keyboards.
      const run = control ? shortcut[event.code === "Slash" ? "/" : letter] : event.key === "?" && !written && shortcut["/"];
      if (!run) return;
      event.preventDefault();
      run();
    });
  });
})();
