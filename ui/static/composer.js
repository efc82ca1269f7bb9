// The question that is being written: text, pictures, and what happens when it is sent.
"use strict";
(() => {
  const { $, el, icon } = vqa;
  const MOST = 8;
  let pictures = []; // {digest, name, changes, size} or {busy: true, name}
  let replaces = null; // the turn that is being edited
  let draft = null; // what was sent last, for when it is refused
  let early = false; // Enter came before the server listened

  // -- pictures ------------------------------------------------------------------------------------

  async function bring(files) {
    vqa.show("chat");
    $("question").focus();
    for (const file of files) {
      if (pictures.length >= MOST) {
        vqa.toast(`At most ${MOST} pictures at a time.`, "error");
        break;
      }
      const place = { busy: true, name: file.name || "pasted picture" };
      pictures.push(place);
      drawTray();
      const found = await vqa.post(`vqa/pictures?name=${encodeURIComponent(place.name)}`, file);
      settle(place, found);
      if (found) warm();
    }
  }
  vqa.bring = bring;

  /** Adds a picture that the server has already. */
  vqa.attach = (picture) => {
    if (!pictures.some((one) => one.digest === picture.digest)) pictures.push(picture);
    drawTray();
    warm();
  };

  function settle(place, found) {
    const at = pictures.indexOf(place);
    if (at < 0) return; // taken away meanwhile
    const known = found && pictures.some((one) => one.digest === found.digest);
    if (found && !known) pictures[at] = found;
    else pictures.splice(at, 1);
    drawTray();
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
    return 1 + turns.slice(0, until).reduce((sum, turn) => sum + turn.pictures.length, 0);
  }

  function drawTray() {
    const first = firstNumber();
    $("tray").replaceChildren(
      ...pictures.map((picture, position) => {
        const item = el("li", {});
        if (picture.busy) {
          item.append(el("span.thumb.waiting", { "aria-label": `Sending ${picture.name}` }));
          return item;
        }
        const numbered = { ...picture, number: first + position };
        item.append(
          vqa.thumb(numbered),
          el("button.icon.remove",
            { type: "button", "aria-label": `Remove picture ${numbered.number}`,
              onclick: () => {
                pictures.splice(pictures.indexOf(picture), 1);
                drawTray();
                $("question").focus();
              } },
            icon("x")),
        );
        return item;
      }),
    );
    $("composer").classList.toggle("with-pictures", pictures.length > 0);
    ready();
  }

  // -- sending -------------------------------------------------------------------------------------

  const isReady = () =>
    !pictures.some((one) => one.busy) && ($("question").value.trim() || pictures.length) && true;

  function ready() {
    document.querySelector(".submit-button").disabled = !isReady();
    const box = $("question");
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 220)}px`;
  }

  function submit() {
    early = !vqa.state.view;
    if (early || !isReady() || vqa.state.asking || vqa.state.view.busy) return;
    draft = { text: $("question").value, pictures, replaces };
    const sent = { question: draft.text, pictures: pictures.map((one) => one.digest) };
    vqa.ask(request(sent));
    clear();
  }

  /** Asks; the request may also be {again: turn}. */
  vqa.ask = (asked) => {
    if (vqa.state.asking || vqa.state.view?.busy) {
      vqa.toast("An answer is still being written. Stop it first.");
      return;
    }
    const conversation = vqa.state.view?.conversation ?? null;
    vqa.state.asking = { conversation };
    vqa.follow();
    vqa.busy();
    vqa.send("ask", { ...asked, conversation });
  };

  vqa.on("error", (_, { wire }) => {
    if (wire !== "ask") return;
    vqa.state.asking = null;
    if (draft && !$("question").value && !pictures.length) {
      $("question").value = draft.text;
      ({ pictures, replaces } = draft);
      drawTray();
    }
    draft = null;
    vqa.busy();
  });

  function clear() {
    pictures = [];
    $("question").value = "";
    editOff();
    drawTray();
  }

  // -- editing an earlier question -----------------------------------------------------------------

  vqa.edit = (turn) => {
    replaces = turn.id;
    pictures = [...turn.pictures];
    $("question").value = turn.question;
    $("editing").hidden = false;
    $("editing").firstElementChild.textContent =
      `Changing question ${turn.number}: a new branch starts there, the old one stays.`;
    drawTray();
    warm();
    $("question").focus();
  };

  function editOff() {
    replaces = null;
    $("editing").hidden = true;
  }
  vqa.on("do:edit-off", clear);
  vqa.on("view", (view, { wire }) => {
    if (early) submit();
    // An edited question belongs to its conversation.
    if (replaces && !view.turns.some((turn) => turn.id === replaces) && wire !== "ask") clear();
    else if (pictures.length) drawTray();
  });

  /** Asks a question about a picture at once (example cards). */
  vqa.askAbout = (picture, question) => {
    pictures = [picture];
    $("question").value = question;
    drawTray();
    submit();
  };
  vqa.putQuestion = (question) => {
    $("question").value = question;
    ready();
    $("question").focus();
  };

  // -- the ways in ---------------------------------------------------------------------------------

  const imagesOf = (transfer) =>
    [...(transfer?.files || [])].filter((file) => file.type.startsWith("image/") || !file.type);

  vqa.starters.push(() => {
    const box = $("question");
    box.addEventListener("input", ready);
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        submit();
      }
      if (event.key === "Escape") {
        if (replaces) clear();
        else if (vqa.state.asking) vqa.act("stop");
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
      if (files.length && document.body.dataset.view !== "train") {
        event.preventDefault();
        bring(files);
      }
    });
    let depth = 0;
    const over = (shown) => $("drop").classList.toggle("shown", shown);
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
      bring([...event.dataTransfer.files]);
    });
    drawTray();
    if (matchMedia("(hover: hover)").matches) box.focus();
  });
  vqa.on("do:attach", () => $("files").click());
})();
