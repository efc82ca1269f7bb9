// Wires to the server, the state of the page, and small helpers. Loaded first.
"use strict";
(() => {
  const wires = {};
  const handlers = {}; // by key of an update
  const vqa = (window.vqa = {
    state: { view: null, going: null, list: [], models: null, settings: {}, asking: null },
    /** Called by each hidden component once it stands. */
    wire(name, ends) {
      wires[name] = ends;
      ends.watch("value", () => receive(ends.props.value, name));
      boot();
    },
    /** Asks the server; what it answers arrives at the handlers. */
    send(name, request) {
      const numbered = { ...request, number: ++sent };
      if (request.do === "hello" || !lines[name]) return trigger(name, numbered);
      if (lines[name].push(numbered) === 1) trigger(name, numbered);
    },
    /** Registers what is done with one kind of update. */
    on(key, handler) {
      (handlers[key] ||= []).push(handler);
    },
    emit(key, value, update) {
      for (const handler of handlers[key] || []) handler(value, update || {});
    },
    $: (id) => document.getElementById(id),
    toast,
    post,
    el,
    icon,
    starters: [],
  });

  // What changes something goes one after the other, since Gradio runs in any order what comes together.
  // A reply brings its request's number back: only the first in line makes way for the one behind it.
  let sent = 0;
  const lines = { act: [], teach: [], train: [] };
  function next(name) {
    lines[name].shift();
    if (lines[name].length) trigger(name, lines[name][0]);
  }

  function trigger(name, request) {
    wires[name].trigger("submit", request);
    if (!silent[name]) silent[name] = setTimeout(() => listen(name, 1), SILENCE);
  }

  // A request that never reached the server is lost without a word. Where nothing comes back for
  // seconds, we look whether the server is there; a question is always answered at once, by its turn.
  const SILENCE = 3000;
  const silent = {}; // timers, by wire
  async function listen(wire, tries) {
    const timer = silent[wire];
    const there = await fetch("healthz", { cache: "no-store" }).then((answer) => answer.ok, () => false);
    if (silent[wire] !== timer) return; // something came meanwhile
    if (there && (wire !== "ask" || tries < 3 || vqa.state.asking?.begun)) {
      silent[wire] = setTimeout(() => listen(wire, tries + 1), SILENCE * 2 ** Math.min(tries, 4));
      // After 45 seconds it is lost rather than slow: those behind it go on.
      if (tries > 3 && lines[wire]?.length) next(wire);
      return;
    }
    delete silent[wire];
    if (lines[wire]) lines[wire].length = 0; // they would be lost as well
    const away = "The server cannot be reached. This page reloads when it is back; your draft is kept.";
    vqa.emit("error", there ? "The server did not answer." : away, { wire });
  }

  function receive(text, wire) {
    if (!text) return;
    const { n, number, hello, ...update } = JSON.parse(text);
    const first = lines[wire]?.[0];
    if (!first || first.number === number) {
      clearTimeout(silent[wire]);
      delete silent[wire];
      if (first) next(wire);
    }
    if (hello && vqa.state.view) return; // asked twice, answered already
    if (hello) setTimeout(() => vqa.emit("hello", true));
    const { state } = vqa;
    const chat = wire === "act" && update.view?.conversation;
    const went = Boolean(chat) && chat === state.going;
    if (went) state.going = null;
    // Somebody who has gone on to another conversation stays there.
    else if (chat && state.view && chat !== state.view.conversation) delete update.view;
    for (const [key, value] of Object.entries(update)) vqa.emit(key, value, { ...update, wire, went });
    // While an answer is written, we go on looking whether the server is there.
    if ((wire === "ask" || wire === "live") && vqa.state.asking) {
      clearTimeout(silent.ask);
      silent.ask = setTimeout(() => listen("ask", 1), SILENCE);
    }
  }

  /** An element: el("button.icon", {title: "x", onclick: f}, "text", child, ...). */
  function el(spec, attributes = {}, ...children) {
    const [tag, ...classes] = spec.split(".");
    const node = document.createElement(tag || "div");
    if (classes.length) node.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "html") node.innerHTML = value; // only ever what the server rendered
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function icon(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("aria-hidden", "true");
    const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
    use.setAttribute("href", `#i-${name}`);
    svg.append(use);
    return svg;
  }

  function toast(text, kind = "plain") {
    for (const old of vqa.$("toasts").children) if (old.innerText.trim() === text) old.remove();
    const node = el(`div.toast.${kind}`, {}, el("span", {}, text));
    node.append(
      el("button.icon", { "aria-label": "Close", onclick: () => node.remove() }, icon("x")),
    );
    vqa.$("toasts").append(node);
    setTimeout(() => node.remove(), kind === "error" ? 12000 : 5000);
  }
  vqa.on("error", (text, { wire }) => {
    // What went wrong with a comparison stands in its place.
    if (wire !== "compare" || vqa.$("vqa").dataset.view !== "compare") toast(text, "error");
  });

  /** Sends a file; gives the server's answer, or null after telling what was wrong. */
  async function post(url, file, signal) {
    try {
      const answer = await fetch(url, { method: "POST", body: file, signal });
      const found = await answer.json().catch(() => ({}));
      if (answer.ok) return found;
      toast(found.error || "The file could not be read.", "error");
    } catch {
      if (!signal?.aborted) toast("The server cannot be reached.", "error");
    }
    return null;
  }
  vqa.on("toast", (text) => toast(text));

  // The page starts when the shell and all wires stand, in whatever order Gradio builds them.
  const NEEDED = ["ask", "live", "act", "pick", "warm", "look", "teach", "train", "compare"];
  let started = false;
  function boot() {
    if (started || !NEEDED.every((name) => wires[name])) return;
    if (!vqa.$("toasts")) return void requestAnimationFrame(boot);
    started = true;
    for (const start of vqa.starters) start();
    document.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button && button.closest("#vqa")) vqa.emit(`do:${button.dataset.do}`, button);
      const view = event.target.closest("[data-view-of]");
      if (view) vqa.show(view.dataset.viewOf);
    });
    hello(500);
  }

  // An event that is triggered before Gradio listens is lost without a word: asked again until answered.
  function hello(patience) {
    if (vqa.state.view) return;
    vqa.send("act", { do: "hello", conversation: addressed()[0] || null });
    setTimeout(() => hello(Math.min(2 * patience, 4000)), patience);
  }

  // The address tells what is shown: "#chat", or another part of the page in "#chat/train" and "#/train".
  const addressed = () => location.hash.slice(1).split("/");
  /** Brings the address up to date; `push` where Back shall lead back. */
  vqa.address = (push) => {
    const chat = vqa.state.view?.conversation ?? "";
    const part = vqa.$("vqa").dataset.view;
    const hash = part === "chat" ? chat : `${chat}/${part}`;
    if (location.hash.slice(1) === hash) return;
    history[push ? "pushState" : "replaceState"](null, "", hash ? `#${hash}` : location.pathname);
  };
  /** Shows the part of the page that is in the address. */
  vqa.showAddressed = () => {
    const part = addressed()[1];
    vqa.show(document.querySelector(`[data-view-of="${CSS.escape(part)}"]`) ? part : "chat", true);
  };
  addEventListener("popstate", () => {
    if (!vqa.state.view) return;
    const [chat] = addressed();
    vqa.showAddressed();
    if (chat === (vqa.state.view.conversation ?? "")) vqa.state.going = null;
    else if (chat) vqa.send("act", { do: "open", conversation: (vqa.state.going = chat) });
    else vqa.fresh();
  });

  /** Goes to a chat. */
  vqa.open = (chat) => {
    vqa.show("chat", true);
    vqa.state.going = chat;
    vqa.send("act", { do: "open", conversation: chat });
  };
  vqa.on("error", (_, { wire }) => {
    if (wire !== "act" || !vqa.state.going) return;
    vqa.state.going = null;
    vqa.address();
  });
  /** A new chat; the server hears of it with the first question. */
  vqa.fresh = (wire = "here") => {
    vqa.state.going = null;
    const view = { conversation: null, title: "", turns: [], meter: null, busy: false };
    vqa.emit("view", view, { wire, went: true });
  };

  /** Puts the focus where one goes on: on the question, or the heading of another part. */
  vqa.home = () => {
    const part = vqa.$("vqa").dataset.view;
    (part === "chat" ? vqa.$("question") : vqa.$(`view-${part}`).querySelector("h1")).focus();
  };
  vqa.on("do:skip", vqa.home);

  const lost = new Map(); // by part of the page, what had the focus in it when it was drawn anew
  /** Draws a part anew; what had the focus in it has it afterwards, as soon as it is there again. */
  vqa.redraw = (root, draw) => {
    const nameOf = (node) => node.getAttribute("aria-label") || node.innerText;
    const named = (name) => [...root.querySelectorAll("button, summary")].filter((node) => nameOf(node) === name);
    const had = document.activeElement;
    if (root.contains(had)) lost.set(root, { name: nameOf(had), place: named(nameOf(had)).indexOf(had) });
    draw();
    if (document.activeElement !== document.body) return void lost.delete(root);
    const { name, place } = lost.get(root) || {};
    const found = name ? named(name) : [];
    const node = found[place] ?? found.at(-1);
    (node?.disabled ? node.parentElement.querySelector("button:enabled") : node)?.focus({ preventScroll: true });
  };

  /** Shows a part of the page: chat, teach, train, compare. */
  vqa.show = (name, quiet) => {
    vqa.$("vqa").dataset.view = document.body.dataset.view = name;
    for (const button of document.querySelectorAll("[data-view-of]")) {
      if (button.dataset.viewOf === name) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
    }
    if (!quiet && vqa.state.view) vqa.address(true);
    vqa.emit("shown", name);
  };

  /** Keeps a text beyond a reload, or gives it back; nothing where the browser blocks storage. */
  vqa.kept = (where, name, text) => {
    try {
      return text === undefined ? window[where].getItem(name) : window[where].setItem(name, text);
    } catch {
      return null;
    }
  };

  // Before the first paint: the theme that was chosen here, or the system's.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => {
    const kept = vqa.kept("localStorage", "vqa-theme");
    return kept ? kept === "dark" : dark.matches;
  };
  const paint = () => document.body?.classList.toggle("dark", isDark());
  document.addEventListener("DOMContentLoaded", paint);
  dark.addEventListener("change", paint);
  vqa.starters.push(paint);
  vqa.on("do:theme", () => {
    const wanted = document.body.classList.contains("dark") ? "light" : "dark";
    vqa.kept("localStorage", "vqa-theme", wanted);
    document.body.classList.toggle("dark", wanted === "dark");
  });
})();
