// Requests to the server, the state of the page, and small helpers. Loaded first.
"use strict";
(() => {
  const handlers = {}; // update key -> functions
  const vqa = (window.vqa = {
    state: { view: null, opening: null, list: [], models: null, settings: {}, asking: null },
    /**
     * Sends a request to the server; its updates arrive at the handlers. Resolves to whether it was accepted.
     * `onRefused`, if given, gets the reason of a refusal in place of the handlers.
     */
    send(name, request, onRefused) {
      const call = () => exchange(name, request, onRefused);
      const accepted = queues[name] ? queues[name].then(call, call) : call(); // also after a failure
      if (queues[name]) queues[name] = accepted;
      return accepted;
    },
    /** Registers a handler for one kind of update. */
    on(key, handler) {
      (handlers[key] ||= []).push(handler);
    },
    emit(key, value, update) {
      for (const handler of handlers[key] || []) handler(value, update || {});
    },
    $: (id) => document.getElementById(id),
    toast,
    save,
    upload,
    el,
    icon,
    setups: [],
  });

  // Requests that change something wait for the previous one, so that the server gets them in order.
  const queues = { act: Promise.resolve(), teach: Promise.resolve(), train: Promise.resolve() };
  const SILENCE = 15000; // ms without data until the server counts as lost; it sends a line every second

  /** Sends one request and emits its updates, one JSON object per line, as they arrive. */
  async function exchange(name, request, onRefused) {
    const abort = new AbortController();
    let timer;
    const within = (promise) => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE);
      return promise.catch(() => null);
    };
    const body = JSON.stringify(request);
    const headers = { "content-type": "application/json" };
    const answer = await within(fetch(`vqa/requests/${name}`, { method: "POST", body, headers, signal: abort.signal }));
    const reader = answer?.ok && answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let [rest, part, accepted] = ["", null, true];
    while (reader && (part = await within(reader.read())) && !part.done) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines.filter(Boolean)) {
        const update = JSON.parse(line);
        if (update.error) accepted = false;
        receive(update, name, onRefused);
      }
    }
    clearTimeout(timer);
    if (part?.done) return accepted;
    const refusal = answer && !answer.ok && (await answer.json().catch(() => null));
    if (refusal?.error) receive(refusal, name, onRefused);
    else if (answer && !answer.ok && answer.status < 502) vqa.emit("error", vqa.t("page.serverSilent"), { channel: name });
    else reportUnreachable(name);
    return false;
  }

  let leaving = false; // the browser cancels requests when the page is left
  addEventListener("pagehide", () => (leaving = true));
  addEventListener("pageshow", () => (leaving = false));
  let waiting = false;
  /** Reports that the server is unreachable, and reloads the page once it is back. */
  async function reportUnreachable(name) {
    if (leaving) return;
    vqa.emit("error", vqa.t("page.serverLost"), { channel: name, lost: true });
    if (waiting) return;
    waiting = true;
    do await new Promise((resume) => setTimeout(resume, 1000));
    while (!(await fetch("healthz", { cache: "no-store" }).then((answer) => answer.ok, () => false)));
    location.reload();
  }

  function receive({ hello, ...update }, channel, onRefused) {
    if (update.error) update.error = vqa.message(update.text ?? update.error);
    if (update.error && onRefused) return onRefused(update.error);
    if (hello) setTimeout(() => vqa.emit("hello", true));
    const { state } = vqa;
    const chat = channel !== "ask" && update.view?.conversation; // turns.js decides about answers
    const navigated = Boolean(chat) && channel === "act" && chat === state.opening;
    if (navigated) state.opening = null;
    // A reply does not pull the user out of a conversation they opened meanwhile.
    else if (chat && state.view && chat !== state.view.conversation) delete update.view;
    for (const [key, value] of Object.entries(update)) vqa.emit(key, value, { ...update, channel, navigated });
  }

  /** Creates an element: el("button.icon", {title: "x", onclick: f}, "text", child, ...). */
  function el(spec, attributes = {}, ...children) {
    const [tag, ...classes] = spec.split(".");
    const node = document.createElement(tag || "div");
    if (classes.length) node.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "html") node.innerHTML = value; // only ever HTML that the server rendered
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

  /** Shows a notice in place of the previous one; it has room of its own and covers nothing. */
  function toast(text, kind = "plain") {
    const node = el(`div.toast.${kind}`, {}, el("span", {}, text));
    node.append(
      el("button.icon", { "aria-label": vqa.t("page.close"), onclick: () => node.remove() }, icon("x")),
    );
    vqa.$("toasts").replaceChildren(node);
    setTimeout(() => node.remove(), kind === "error" ? 12000 : 5000);
  }
  /** Puts notices above the composer, below another view, or into the open dialog, which lets nothing else be clicked. */
  vqa.placeToasts = () => {
    if (vqa.$("sheet").open) vqa.$("sheet").append(vqa.$("toasts"));
    else if (vqa.$("vqa").dataset.view === "chat") vqa.$("composer").before(vqa.$("toasts"));
    else vqa.$("vqa").append(vqa.$("toasts"));
  };
  // A notice leaves with the view or chat to which it belongs; "gone" is the reason for a notice.
  const clearToasts = () => vqa.$("toasts").replaceChildren();
  vqa.on("view", (_, { channel, navigated }) => navigated && channel !== "gone" && clearToasts());
  vqa.on("error", (text, { channel, lost }) => {
    if (["estimate", "warm"].includes(channel) && !lost) return; // nobody asked for these
    // Compare shows its own errors in place of the answers.
    if (channel !== "compare" || vqa.$("vqa").dataset.view !== "compare") toast(text, "error");
  });

  /**
   * Sends what a person wrote in a form, or in another element with a button. Resolves to whether it was accepted;
   * if it was not, the text stays, with the reason below it.
   */
  async function save(form, name, request) {
    const show = (text) => {
      form.querySelector(".refused")?.remove();
      if (!text) return;
      form.append(el("p.refused", { role: "alert" }, text));
      form.scrollIntoView({ block: "nearest" });
    };
    const button = form.querySelector(".primary");
    if (button) button.disabled = true; // one click saves once
    show("");
    const accepted = await vqa.send(name, request, show);
    if (button) button.disabled = false;
    return accepted;
  }

  /** Uploads a file. Returns the server's reply, or null after showing the error. */
  async function upload(url, file, signal) {
    try {
      const answer = await fetch(url, { method: "POST", body: file, signal });
      const found = await answer.json().catch(() => ({}));
      if (answer.ok) return found;
      toast(vqa.message(found.text || found.error) || vqa.t("page.fileUnreadable"), "error");
    } catch {
      if (!signal?.aborted) toast(vqa.t("page.serverUnreachable"), "error");
    }
    return null;
  }
  vqa.on("toast", (text) => toast(vqa.message(text)));

  // The script is deferred, so the whole document and all parts of this script are loaded by then.
  addEventListener("DOMContentLoaded", () => {
    for (const start of vqa.setups) start();
    document.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button && button.closest("#vqa")) vqa.emit(`do:${button.dataset.do}`, button);
      const view = event.target.closest("[data-view-of]");
      if (view) vqa.show(view.dataset.viewOf);
    });
    vqa.send("act", { do: "hello", conversation: addressed()[0] || null });
  });

  // The address holds what is shown: "#CHAT", or another view as in "#CHAT/train" and "#/train".
  const addressed = () => location.hash.slice(1).split("/");
  /** Updates the address; with `push` as a new entry in the history. */
  vqa.address = (push) => {
    const chat = vqa.state.view?.conversation ?? "";
    const part = vqa.$("vqa").dataset.view;
    const hash = part === "chat" ? chat : `${chat}/${part}`;
    if (location.hash.slice(1) === hash) return;
    history[push ? "pushState" : "replaceState"](null, "", hash ? `#${hash}` : location.pathname);
  };
  /** Shows the view that the address names. */
  vqa.showAddressed = () => {
    const part = addressed()[1];
    vqa.show(document.querySelector(`[data-view-of="${CSS.escape(part)}"]`) ? part : "chat", true);
  };
  addEventListener("popstate", () => {
    if (!vqa.state.view) return;
    const [chat] = addressed();
    vqa.showAddressed();
    if (chat === (vqa.state.view.conversation ?? "")) vqa.state.opening = null;
    else if (chat) vqa.send("act", { do: "open", conversation: (vqa.state.opening = chat) });
    else vqa.newChat();
  });

  /** Opens a chat. */
  vqa.open = (chat) => {
    vqa.show("chat", true);
    vqa.state.opening = chat;
    vqa.send("act", { do: "open", conversation: chat });
  };
  vqa.on("error", (_, { channel }) => {
    if (channel !== "act" || !vqa.state.opening) return;
    vqa.state.opening = null;
    vqa.address();
  });
  /** Starts a new chat; the server creates it with the first question. */
  vqa.newChat = (channel = "here") => {
    vqa.state.opening = null;
    const view = { conversation: null, title: "", turns: [], meter: null, busy: false };
    vqa.emit("view", view, { channel, navigated: true });
  };

  /** Shows a view: chat, teach, train or compare. */
  vqa.show = (name, quiet) => {
    const moved = name !== vqa.$("vqa").dataset.view;
    vqa.$("vqa").dataset.view = document.body.dataset.view = name;
    for (const button of document.querySelectorAll("[data-view-of]")) {
      if (button.dataset.viewOf === name) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
    }
    if (moved) clearToasts();
    vqa.placeToasts();
    if (!quiet && vqa.state.view) vqa.address(true);
    vqa.emit("shown", name);
  };

  /** Writes or reads browser storage; returns null where the browser blocks it. */
  vqa.stored = (where, name, text) => {
    try {
      return text === undefined ? window[where].getItem(name) : window[where].setItem(name, text);
    } catch {
      return null;
    }
  };
  vqa.on("do:theme", () => {
    const theme = document.body.classList.contains("dark") ? "light" : "dark";
    vqa.stored("localStorage", "vqa-theme", theme);
    document.body.classList.toggle("dark", theme === "dark");
  });
})();
