// The conversation: each turn is drawn once and then updated only where it changes.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  const nodes = new Map(); // turn id -> {root, drawn}
  let stickToEnd = true;

  vqa.on("view", (view, { channel, navigated }) => {
    const shown = vqa.state.view?.conversation ?? null;
    const asking = vqa.state.asking;
    if (channel === "ask") {
      // A reply does not pull the user out of a conversation they opened meanwhile.
      const here = asking ? (asking.conversation ?? view.conversation) : shown;
      if (view.conversation !== here) return;
      if (asking) vqa.state.asking = view.busy ? { conversation: view.conversation, begun: true } : null;
      if (asking?.stop && view.busy) vqa.send("act", { do: "stop", conversation: view.conversation });
    } else if (asking && (asking.conversation !== view.conversation || (asking.begun && !view.busy))) {
      vqa.state.asking = null; // another conversation was opened, or the answer ended without this page knowing
    }
    const first = !vqa.state.view;
    const moved = first || shown !== view.conversation;
    vqa.state.view = view;
    if (first) vqa.showAddressed();
    vqa.address(navigated);
    if (moved) {
      nodes.clear();
      $("log").replaceChildren();
      stickToEnd = true;
    }
    document.title = view.title ? `${vqa.message(view.title)} · Look & Ask` : "Look & Ask";
    vqa.draw();
    meter(view.meter);
    busy();
    // After a reload, in a second tab or on returning to a chat: follow the answer in progress.
    if (view.busy && !vqa.state.asking) {
      vqa.state.asking = { conversation: view.conversation, begun: true };
      vqa.send("ask", { follow: true, conversation: view.conversation });
    }
  });

  // The chat was deleted, perhaps in another tab, while its answer was being written.
  vqa.on("gone", (conversation) => {
    if (vqa.state.asking?.conversation === conversation) vqa.state.asking = null;
    if (vqa.state.view?.conversation === conversation) vqa.newChat("gone");
    busy();
  });

  /** Draws the turns, including a question that is still being sent. */
  vqa.draw = () => vqa.redraw($("log"), () => draw(turnsOf(vqa.state.view)));
  function turnsOf(view) {
    const { sent, from, conversation } = vqa.state.asking || {};
    if (!sent || conversation !== view.conversation) return view.turns;
    const place = view.turns.findIndex((turn) => turn.id === from);
    const before = place < 0 ? view.turns : view.turns.slice(0, place);
    return [...before, { ...sent, number: before.length + 1 }];
  }

  function draw(turns) {
    const log = $("log");
    const seen = new Set();
    $("empty").hidden = turns.length > 0;
    turns.forEach((turn, position) => {
      seen.add(turn.id);
      let node = nodes.get(turn.id);
      if (!node) nodes.set(turn.id, (node = make(turn)));
      if (log.children[position] !== node.root) log.insertBefore(node.root, log.children[position] || null);
      refresh(node, turn);
    });
    for (const [id, node] of nodes) {
      if (!seen.has(id)) {
        node.root.remove();
        nodes.delete(id);
      }
    }
    vqa.drawFollowups();
    scroll();
  }

  function make(turn) {
    const question = el("div.question", { "data-testid": "user" });
    const answer = el("div.answer", { "data-testid": "bot" });
    const foot = el("div.foot");
    const root = el("article.turn", { "data-turn": turn.id }, question, answer, foot);
    return { root, question, answer, foot, drawn: {} };
  }

  function refresh(node, turn) {
    node.root.setAttribute("aria-label", t("chat.questionNumber", turn));
    node.root.classList.toggle("left-out", turn.left_out);
    part(node, "question", [turn.question, turn.pictures, turn.branches, turn.left_out], () =>
      node.question.replaceChildren(...questionOf(turn)),
    );
    if (turn.state === "answering" && vqa.state.asking) {
      if (!node.drawn.live) state(node, { state: turn.sending ? "sending" : "looking" });
    } else {
      part(node, "answer", [turn.html, turn.state, turn.facts.error, turn.facts.correction], () => answerOf(node, turn));
      part(node, "foot", [turn.facts, turn.verdict, turn.state], () =>
        node.foot.replaceChildren(...footerOf(turn)),
      );
    }
  }

  function part(node, name, value, redraw) {
    const key = JSON.stringify(value);
    if (node.drawn[name] === key) return;
    node.drawn[name] = key;
    redraw();
  }

  const button = (name, label, onclick, extra = {}) =>
    el("button.icon", { "aria-label": label, title: label, onclick, ...extra }, icon(name));

  function questionOf(turn) {
    const parts = [];
    if (turn.left_out) {
      parts.push(el("p.note", {}, t("chat.leftOut")));
    }
    if (turn.pictures.length) parts.push(el("div.pictures", {}, ...turn.pictures.map(vqa.thumb)), ...vqa.regionNotes(turn.pictures));
    if (turn.question) parts.push(el("div.bubble", { dir: "auto" }, turn.question));
    if (turn.sending) return parts;
    const tools = el("div.tools");
    if (turn.branches.of > 1) {
      const { at, of, before, after } = turn.branches;
      const go = (id) => () => act("branch", { turn: id });
      tools.append(
        el("span.branches", { role: "group", "aria-label": t("chat.versions") },
          button("left", t("chat.previousVersion"), go(before), { disabled: !before }),
          el("span", {}, `${at} / ${of}`),
          button("right", t("chat.nextVersion"), go(after), { disabled: !after })),
      );
    }
    tools.append(
      button("pen", t("chat.edit"), () => vqa.edit(turn)),
      button("copy", t("chat.copyQuestion"), () => copy(turn.question)),
      button("bin", t("chat.delete"), () =>
        vqa.confirm(t("chat.deleteTitle"), turn.question, () => act("delete-turn", { turn: turn.id }))),
    );
    parts.push(tools);
    return parts;
  }

  /** A thumbnail that opens the picture at full size. */
  vqa.thumb = (picture) => {
    const image = el("img", { src: `vqa/pictures/${picture.digest}?size=small`, alt: "" });
    if (picture.size) image.style.maxHeight = `${1.5 * picture.size[1]}px`; // small pictures blur when enlarged further
    return el("button.thumb",
      { type: "button", "aria-label": t("picture.named", picture),
        onclick: () => vqa.openPicture(picture) },
      image,
      el("span.number", { "aria-hidden": "true" }, String(picture.number)));
  };

  function answerOf(node, turn) {
    node.answer.classList.remove("running");
    node.drawn.live = false;
    node.answer.innerHTML = turn.html;
    vqa.codeButtons(node.answer);
    if (turn.state === "failed") { // perhaps after some words
      node.answer.append(
        el("div.failed", { role: "alert" }, el("span", {}, vqa.message(turn.facts.text || turn.facts.error) || t("page.failed")),
          el("button.link", { onclick: () => vqa.ask({ again: turn.id }, turn) }, t("chat.tryAgain")),
          el("button.link", { onclick: () => vqa.askOther(turn) }, t("download.another"))),
      );
    } else if (!turn.html) {
      const words = t(turn.state === "answering" ? "chat.stillAnswering" : "chat.stoppedEarly");
      node.answer.replaceChildren(el("p.note", {}, words));
    }
    node.answer.dataset.state = turn.state;
    const { correction } = turn.facts;
    node.answer.classList.toggle("corrected", Boolean(correction));
    if (correction) {
      node.answer.append(el("p.right-answer", {}, el("span.badge.well", {}, t("chat.corrected")), " ", el("span", { dir: "auto" }, correction)));
    }
  }

  /** Adds a copy button to each code block of an answer. */
  vqa.codeButtons = (answer) => {
    for (const pre of answer.querySelectorAll("pre")) {
      pre.tabIndex = 0;
      pre.append(button("copy", t("chat.copyCode"), () => copy(pre.querySelector("code").innerText)));
    }
  };

  const again = (turn) => [
    button("again", t("chat.again"), () => vqa.ask({ again: turn.id }, turn)),
    button("two", t("download.another"), () => vqa.askOther(turn)),
  ];

  function footerOf(turn) {
    const facts = turn.facts;
    const parts = [];
    const answered = turn.answer && turn.state !== "answering";
    if (answered) {
      parts.push(
        button("copy", t("chat.copyAnswer"), () => copy(turn.answer)),
        ...(turn.state === "failed" ? [] : again(turn)), // the failure itself offers both
      );
    }
    // Half an answer, or one that went on repeating itself, is nothing to learn from.
    if (answered && (turn.verdict || (turn.state === "answered" && facts.finish !== "repetition"))) {
      parts.push(
        button("good", t("chat.right"), () => vqa.emit("judge", { turn, verdict: "right" }),
          { "aria-pressed": turn.verdict === "right" ? "true" : "false" }),
        button("bad", t("chat.wrong"), () => vqa.emit("judge", { turn, verdict: "wrong" }),
          { "aria-pressed": turn.verdict === "wrong" ? "true" : "false", "data-verdict": "wrong" }),
      );
    }
    if (answered && turn.with_picture) {
      parts.push(
        el("button.chip.look", { onclick: () => vqa.emit("look", turn), title: t("look.title") },
          icon("eye"), t("look.title")),
      );
      if (facts.unknown_picture) {
        parts.push(el("button.chip.photographs", { onclick: () => vqa.askAboutPhotograph(turn) },
          icon("camera"), t("download.photographs")));
      }
      if (facts.looked) {
        parts.push(el(`span.badge.${facts.looked}`, {}, t(vqa.GAINS[facts.looked])));
      }
    }
    if (!answered && turn.state === "stopped") parts.push(...again(turn));
    const quiet = [];
    if (answered && facts.confidence) quiet.push(vqa.confidence(facts));
    if (facts.again) quiet.push(vqa.message(facts.again));
    if (facts.ended?.length) quiet.push(vqa.message(facts.ended));
    if (facts.model) quiet.push(vqa.message(facts.model));
    if (quiet.length) {
      const title = facts.new_tokens && facts.prompt_tokens !== undefined
        ? `${t(facts.calibrated ? "page.likelyRightMore" : "page.sureOfWordsMore")}\n` +
          t(facts.image_tokens === undefined ? "chat.figuresServer" : "chat.figures", { prompt: facts.prompt_tokens,
          image: facts.image_tokens, cached: facts.cached_tokens, generated: facts.new_tokens, seconds: facts.seconds })
        : null;
      parts.push(el("span.facts", { title }, quiet.join(" · ")));
    }
    return parts;
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // The clipboard API needs https; the old command does not.
      const area = el("textarea", { "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    vqa.toast(t("page.copied"));
  }

  const act = (action, more = {}) =>
    vqa.send("act", { do: action, conversation: vqa.state.view.conversation, ...more });

  // -- the answer in progress ----------------------------------------------------------------------

  const STATES = {
    sending: "chat.stateSending",
    looking: "chat.stateLooking",
    answering: "chat.stateLooking", // before the first token
    loading: "chat.stateLoading",
  };

  vqa.on("live", (live) => {
    const node = nodes.get(live.turn);
    if (!node || !vqa.state.asking) return;
    node.drawn.live = true;
    node.drawn.answer = node.drawn.foot = "";
    if (live.html) {
      node.answer.innerHTML = live.html;
      node.answer.classList.add("running");
      node.answer.dataset.state = "answering";
      node.foot.replaceChildren();
    } else state(node, live);
    scroll();
  });

  function state(node, live) {
    let words = STATES[live.state] ? t(STATES[live.state]) : "";
    if (live.state === "waiting") {
      words = live.place ? t("chat.stateWaiting", { count: live.place }) : t("chat.stateNext");
    }
    if (live.state === "loading") {
      const message = vqa.message(live.message);
      if (message) words = t("chat.stateLoadingMore", { message });
      if (live.share) words += ` ${vqa.percent(live.share)}`;
    }
    node.answer.dataset.state = live.state;
    node.answer.replaceChildren(el("p.state", {}, el("span.pulse", { "aria-hidden": "true" }), words));
    node.foot.replaceChildren();
  }

  function busy() {
    const running = Boolean(vqa.state.asking || vqa.state.view?.busy);
    document.querySelector(".stop-button").hidden = !running;
    document.querySelector(".submit-button").hidden = running;
    $("log").setAttribute("aria-busy", String(running));
  }
  vqa.showBusy = busy;
  vqa.on("do:stop", () => {
    const asking = vqa.state.asking;
    if (asking && !asking.begun) asking.stop = true; // stop as soon as the server has the question
    else act("stop");
  });

  // -- context and scrolling -----------------------------------------------------------------------

  function meter(value) {
    const node = $("meter");
    node.hidden = !value;
    $("room").hidden = !value?.text;
    if (!value) return;
    const share = Math.min(1, value.used / value.limit);
    node.querySelector(".fill").style.width = `${Math.max(2, share * 100)}%`;
    node.classList.toggle("full", value.level !== "ok");
    const words = t("chat.meterTokens", value);
    node.querySelector(".words").textContent = words;
    node.setAttribute("aria-valuenow", value.used);
    node.setAttribute("aria-valuemax", value.limit);
    node.setAttribute("aria-valuetext", words);
    if (value.text) {
      $("room").firstElementChild.textContent = vqa.message(value.text);
      $("room").lastElementChild.textContent = t(value.pictures.length ? "chat.meterNew" : "sidebar.newChat");
    }
    node.title = t("chat.meterMore", { tokens: words, image: value.image });
  }

  vqa.on("do:same-pictures", () => {
    const { turns, meter: { pictures } } = vqa.state.view;
    const known = new Map(turns.flatMap((turn) => turn.pictures).map((picture) => [picture.digest, picture]));
    vqa.newChat();
    vqa.startWith(pictures.map((digest) => known.get(digest)).filter(Boolean));
  });

  function scroll() {
    if (!$("empty").hidden) $("scroll").scrollTop = 0;
    else if (stickToEnd) $("scroll").scrollTop = $("scroll").scrollHeight;
  }

  let size = ""; // of the log when it was last scrolled to the end
  const sizeNow = () => `${$("scroll").clientWidth} ${$("scroll").clientHeight}`;
  vqa.setups.push(() => {
    $("scroll").addEventListener("scroll", () => {
      if (size !== sizeNow()) return; // resized by the window, the composer or a notice, not scrolled by the user
      const { scrollTop, scrollHeight, clientHeight } = $("scroll");
      stickToEnd = scrollHeight - scrollTop - clientHeight < 60;
      $("latest").hidden = stickToEnd;
    });
    $("log").addEventListener("load", scroll, true); // pictures change the height when they load
    new ResizeObserver(() => {
      size = sizeNow();
      scroll();
    }).observe($("scroll"));
  });
  vqa.on("do:latest", () => {
    stickToEnd = true;
    scroll();
  });
  vqa.followEnd = () => {
    stickToEnd = true;
  };
})();
