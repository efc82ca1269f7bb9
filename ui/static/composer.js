// The question that is being written: text, pictures, and what happens when it is sent.
"use strict";
(() => {
  const { $, el, icon } = vqa;
  const MOST = 8;
  let pictures = []; // {digest, name, changes, size} or {busy: true, name}
  let replaces = null; // the turn that is being edited
  let draft = null; // what was sent, until the server has it
  let aside = null; // what was being written when an earlier question was taken up
  let early = false; // Enter came before the server listened
  let whenReady = null; // Enter came before the pictures were there: {conversation}

  // -- pictures ------------------------------------------------------------------------------------

  async function bring(files) {
    vqa.show("chat");
    $("question").focus();
    const room = Math.max(0, MOST - pictures.length);
    if (files.length > room) vqa.toast(`At most ${MOST} pictures at a time.`, "error");
    const places = files.slice(0, room).map((file) => ({
      busy: true, name: file.name || "pasted picture", file, way: new AbortController(),
    }));
    pictures.push(...places);
    drawTray();
    for (const place of places) {
      if (!holderOf(place)) continue; // taken away meanwhile
      const url = `vqa/pictures?name=${encodeURIComponent(place.name)}`;
      const found = await vqa.post(url, place.file, place.way.signal);
      settle(place, found);
      if (found) warm();
    }
  }
  vqa.bring = bring;

  /** A scene takes the place of the one before, its question that of the other's or of nothing. */
  vqa.takeScene = ({ picture, question }) => {
    const box = $("question");
    const old = pictures.find((one) => one.scene);
    if (!old && pictures.length >= MOST) return vqa.toast(`At most ${MOST} pictures at a time.`, "error");
    const scene = { ...picture, scene: question };
    pictures = old ? pictures.map((one) => (one === old ? scene : one)) : [...pictures, scene];
    if (!box.value.trim() || box.value === old?.scene) box.value = question;
    drawTray();
    warm();
    box.focus();
  };

  const holderOf = (place) => [pictures, aside?.pictures].find((list) => list?.includes(place));

  function settle(place, found) {
    const list = holderOf(place);
    if (!list) return; // taken away meanwhile
    const known = found && list.some((one) => one.digest === found.digest);
    if (found && !known) list[list.indexOf(place)] = found;
    else list.splice(list.indexOf(place), 1);
    if (!found) whenReady = null;
    drawTray();
    if (whenReady && !sending()) submit();
  }

  /** Lets the model look at the pictures while the question is still being written. */
  function warm() {
    const digests = pictures.filter((one) => one.digest).map((one) => one.digest);
    if (digests.length) vqa.send("warm", request({ pictures: digests }));
  }

  const request = (more) => ({ conversation: vqa.state.view?.conversation ?? null, replaces, ...more });

  function firstNumber() {
    const turns = vqa.state.view?.turns || [];
    const until = replaces ? turns.findIndex((turn) => turn.id === replaces) : turns.length;
    const numbers = turns.slice(0, until).flatMap((turn) => turn.pictures.map((picture) => picture.number));
    return 1 + Math.max(0, ...numbers);
  }

  function drawTray() {
    const first = firstNumber();
    $("tray").replaceChildren(
      ...pictures.map((picture, position) => {
        const numbered = { ...picture, number: first + position };
        const item = el("li", {},
          picture.busy
            ? el("span.thumb.waiting", { role: "img", "aria-label": `Sending ${picture.name}` })
            : vqa.thumb(numbered),
          el("button.icon.remove",
            { type: "button", "aria-label": `Remove picture ${numbered.number}`,
              onclick: () => {
                picture.way?.abort();
                pictures.splice(pictures.indexOf(picture), 1);
                whenReady = null;
                drawTray();
                $("question").focus();
              } },
            icon("x")),
        );
        return item;
      }),
    );
    if (whenReady) $("tray").append(el("li.note", { role: "status" }, "Asked as soon as the pictures are here."));
    $("composer").classList.toggle("with-pictures", pictures.length > 0);
    ready();
  }

  // -- sending -------------------------------------------------------------------------------------

  /** Keeps the draft over a reload of this tab, for example after a lost connection. */
  function keep() {
    const kept = draft || (replaces ? aside : { text: $("question").value, pictures });
    const here = kept && { text: kept.text, pictures: kept.pictures.filter((one) => one.digest), replaces: null };
    vqa.kept("sessionStorage", "vqa-draft", JSON.stringify(here));
  }

  const sending = () => pictures.some((one) => one.busy);
  const isEmpty = () => !$("question").value.trim() && !pictures.length;

  function ready() {
    keep();
    document.querySelector(".submit-button").disabled = isEmpty();
    const box = $("question");
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 220)}px`;
  }

  function submit() {
    early = !vqa.state.view || Boolean(vqa.state.going);
    if (early || isEmpty() || vqa.state.asking || vqa.state.view.busy) return;
    if (sending()) {
      whenReady = { conversation: vqa.state.view.conversation };
      return drawTray();
    }
    draft = { text: $("question").value, pictures, replaces };
    const sent = { question: draft.text, pictures: pictures.map((one) => one.digest) };
    const first = firstNumber();
    const shown = pictures.map((one, position) => ({ ...one, number: first + position }));
    const asked = request(sent);
    clear();
    vqa.ask(asked, { question: draft.text, pictures: shown });
  }

  /** Asks; the request may also be {again: turn}. The question shows at once. */
  vqa.ask = (asked, { question, pictures: shown } = { question: asked.question, pictures: [] }) => {
    if (vqa.state.asking || vqa.state.view?.busy) {
      vqa.toast("An answer is still being written. Stop it first.");
      return;
    }
    const conversation = vqa.state.view?.conversation ?? null;
    const sent = {
      id: "sent", question, pictures: shown, state: "answering", sending: true, facts: {}, branches: { of: 1 },
    };
    vqa.state.asking = { conversation, sent, from: asked.again || asked.replaces };
    vqa.follow();
    vqa.draw();
    vqa.busy();
    vqa.send("ask", { ...asked, conversation });
  };

  vqa.on("error", (_, { wire, error }) => {
    if (wire === "act") early = false;
    if (wire !== "ask") return;
    vqa.state.asking = null;
    vqa.draw();
    if (draft) {
      const text = [draft.text, $("question").value].filter(Boolean).join("\n");
      put({ text, pictures: [...draft.pictures, ...pictures].slice(0, MOST), replaces: draft.replaces });
      $("editing").hidden = !replaces;
    }
    draft = null;
    vqa.busy();
    // What the server refuses may have been asked in a chat that is gone.
    const conversation = vqa.state.view?.conversation;
    if (error && conversation) vqa.send("act", { do: "refresh", conversation });
  });

  /** Puts a draft into the box. */
  function put({ text, pictures: shown, replaces: turn }) {
    $("question").value = text;
    [pictures, replaces, whenReady] = [shown, turn, null];
    drawTray();
  }

  function clear() {
    put({ text: "", pictures: [], replaces: null });
    $("editing").hidden = true;
  }

  /** Ends a change of an earlier question; what was being written before comes back. */
  function editOff() {
    clear();
    if (aside) put(aside);
    aside = null;
  }

  // -- editing an earlier question -----------------------------------------------------------------

  vqa.edit = (turn) => {
    if (!replaces && !isEmpty()) aside = { text: $("question").value, pictures, replaces: null };
    put({ text: turn.question, pictures: [...turn.pictures], replaces: turn.id });
    $("editing").hidden = false;
    $("editing").firstElementChild.textContent =
      `Changing question ${turn.number}: a new branch starts there, the old one stays.`;
    warm();
    $("question").focus();
  };

  vqa.on("do:edit-off", editOff);
  vqa.on("view", (view, { wire }) => {
    if (early) submit();
    if (whenReady && whenReady.conversation !== view.conversation) whenReady = null;
    if (wire === "ask" && draft) {
      draft = null;
      if (aside && isEmpty()) editOff(); // the changed question is on its way
      else keep();
    }
    // An edited question belongs to its conversation; where that was deleted, it is one like any other.
    if (wire === "gone") [replaces, $("editing").hidden] = [null, true];
    if (replaces && !view.turns.some((turn) => turn.id === replaces) && wire !== "ask") editOff();
    else if (pictures.length) drawTray();
  });

  /** Asks a question about a picture at once (example cards). */
  vqa.askAbout = (picture, question) => {
    vqa.ask({ question, pictures: [picture.digest] }, { question, pictures: [{ ...picture, number: 1 }] });
  };

  // -- the ways in ---------------------------------------------------------------------------------

  const takers = { chat: bring, compare: ([file]) => vqa.comparePicture(file) }; // by part of the page
  const taker = () => takers[$("vqa").dataset.view];
  const imagesOf = (transfer) =>
    [...(transfer?.files || [])].filter((file) => file.type.startsWith("image/") || !file.type);

  vqa.starters.push(() => {
    const box = $("question");
    box.addEventListener("input", () => {
      if (!whenReady) return ready();
      whenReady = null; // not finished after all
      drawTray();
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        submit();
      }
      if (event.key === "Escape") {
        if (replaces) editOff();
        else if (vqa.state.asking) vqa.emit("do:stop");
      }
      if (event.key === "ArrowUp" && !box.value && !pictures.length) {
        const last = vqa.state.view?.turns.at(-1);
        if (last) {
          event.preventDefault();
          vqa.edit(last);
        }
      }
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    $("files").addEventListener("change", () => {
      bring([...$("files").files]);
      $("files").value = "";
    });
    document.addEventListener("paste", (event) => {
      const files = imagesOf(event.clipboardData);
      // Spreadsheets give a picture of the text as well; a file manager gives the file's name.
      const text = event.clipboardData?.getData("text/plain").trim();
      if (text && !files.some((file) => text.includes(file.name))) return;
      if (files.length && taker()) {
        event.preventDefault();
        taker()(files);
      }
    });
    let depth = 0;
    const over = (shown) => $("drop").classList.toggle("shown", Boolean(shown && taker()));
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragenter", (event) => {
      if (holdsFiles(event)) over(++depth > 0);
    });
    document.addEventListener("dragleave", (event) => {
      if (holdsFiles(event)) over(--depth > 0);
    });
    document.addEventListener("dragover", (event) => {
      if (holdsFiles(event)) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      depth = 0;
      over(false);
      taker()?.([...event.dataTransfer.files]);
    });
    // Somebody may have typed already; then Enter only ended the line.
    const kept = JSON.parse(vqa.kept("sessionStorage", "vqa-draft"));
    const typed = box.value;
    const text = [kept?.text, typed.replace(/\n$/, "")].filter(Boolean).join("\n");
    put({ pictures: [], replaces: null, ...kept, text });
    if (matchMedia("(hover: hover)").matches) box.focus();
    if (typed.trim() && typed.endsWith("\n")) submit();
  });
  vqa.on("do:attach", () => $("files").click());
})();
