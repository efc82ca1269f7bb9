// The composer: text and pictures of the next question, and how it is sent.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  const MAX_PICTURES = 8;
  let pictures = []; // {digest, name, changes, size} or {busy: true, name}
  let replaces = null; // the turn that is being edited
  let draft = null; // the question that was sent, until the server confirms it
  let savedDraft = null; // the draft that was set aside when an earlier question was edited
  let sendWhenReady = false; // Enter was pressed before the page was ready
  let sendWhenUploaded = null; // Enter was pressed before all pictures were uploaded: {conversation}

  // -- pictures ------------------------------------------------------------------------------------

  const room = () => Math.max(0, MAX_PICTURES - pictures.length);
  const tooMany = () => vqa.toast(t("composer.tooMany", { count: MAX_PICTURES }), "error");

  /** Attaches files; resolves to whether the server stored all pictures among them. */
  async function addPictures(files) {
    vqa.show("chat");
    $("question").focus();
    const isPdf = await Promise.all(files.map(vqa.isPdf));
    const stored = await addUploads(files.filter((_, place) => !isPdf[place]).map((file) => ({ name: file.name || t("composer.pasted"), file })));
    for (const file of files.filter((_, place) => isPdf[place])) {
      if (!room()) return tooMany();
      const pages = await vqa.choosePages(file, room());
      await addUploads(pages.map((page) => ({ name: file.name, file, page })));
    }
    return stored;
  }
  async function addUploads(added) {
    let stored = added.length <= room();
    if (!stored) tooMany();
    const uploads = added.slice(0, room()).map((one) => ({ ...one, busy: true, abort: new AbortController() }));
    pictures.push(...uploads);
    drawTray();
    for (const entry of uploads) {
      if (!listWith(entry)) continue; // removed meanwhile
      const uploaded = await vqa.uploadPicture(entry.file, entry.page, entry.abort.signal);
      finishUpload(entry, uploaded);
      if (uploaded) warm();
      else stored = false;
    }
    return stored;
  }
  vqa.addPictures = addPictures;

  /** Starts a question with pictures that the server has; the text stays. */
  vqa.startWith = (shown) => {
    setDraft({ text: $("question").value, pictures: shown.slice(0, MAX_PICTURES), replaces: null });
    warm();
    $("question").focus();
  };

  /** Attaches a picture that the server has already. */
  vqa.usePicture = (picture) => {
    if (!room()) return tooMany();
    if (!pictures.some((one) => one.digest === picture.digest)) pictures.push(picture);
    drawTray();
    warm();
    $("question").focus();
  };

  /**
   * Attaches a picture that was made of another, in its place if that is attached; with `both`, beside it.
   * Returns whether there was room.
   */
  vqa.useEdited = (old, made, both = false) => {
    const place = pictures.findIndex((one) => one.digest === old.digest);
    const wanted = both ? [old, made] : [made];
    const next = place < 0 ? [...pictures, ...wanted] : pictures.toSpliced(place, 1, ...wanted);
    const unique = next.filter((one, at) => !one.digest || next.findIndex((other) => other.digest === one.digest) === at);
    if (unique.length > MAX_PICTURES) return void tooMany();
    pictures = unique;
    drawTray();
    warm();
    return true;
  };

  /** Attaches a generated scene in place of the previous one; its question replaces only an empty box or the previous question. */
  vqa.useScene = ({ picture, question }) => {
    const box = $("question");
    const old = pictures.find((one) => one.scene);
    if (!old && !room()) return tooMany();
    const scene = { ...picture, scene: question };
    pictures = old ? pictures.map((one) => (one === old ? scene : one)) : [...pictures, scene];
    if (!box.value.trim() || box.value === old?.scene) box.value = question;
    drawTray();
    warm();
    box.focus();
  };

  const listWith = (entry) => [pictures, savedDraft?.pictures].find((list) => list?.includes(entry));

  function finishUpload(entry, uploaded) {
    const list = listWith(entry);
    if (!list) return; // removed meanwhile
    const duplicate = uploaded && list.some((one) => one.digest === uploaded.digest);
    if (uploaded && !duplicate) list[list.indexOf(entry)] = uploaded;
    else list.splice(list.indexOf(entry), 1);
    if (!uploaded) sendWhenUploaded = null;
    drawTray();
    if (sendWhenUploaded && !sending()) submit();
  }

  /** Has the server encode the pictures while the question is still being written. */
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
            ? el("span.thumb.waiting", { role: "img", "aria-label": t("composer.sending", { name: picture.name }) })
            : vqa.thumb(numbered),
          el("button.icon.remove",
            { type: "button", "aria-label": t("composer.remove", { number: numbered.number }),
              onclick: () => {
                picture.abort?.abort();
                pictures.splice(pictures.indexOf(picture), 1);
                sendWhenUploaded = null;
                drawTray();
                $("question").focus();
              } },
            icon("x")),
        );
        return item;
      }),
    );
    if (sendWhenUploaded) $("tray").append(el("li.note", { role: "status" }, t("composer.waits")));
    $("composer").classList.toggle("with-pictures", pictures.length > 0);
    showEstimate(estimate);
    ready();
  }

  // -- what the question will cost, and what the model gets of its pictures -------------------------

  const PAUSE = 500; // ms without a change before the server is asked
  let estimate = null;
  let pause = null;
  let requested = ""; // what the latest estimate is for

  function estimateSoon() {
    const digests = pictures.filter((one) => one.digest).map((one) => one.digest);
    const asked = request({ question: $("question").value, pictures: digests });
    const wanted = isEmpty() || !vqa.state.view ? "" : JSON.stringify([asked, vqa.state.models?.picked, vqa.state.settings.detail]);
    if (wanted === requested) return;
    requested = wanted;
    clearTimeout(pause);
    if (wanted) pause = setTimeout(() => vqa.send("estimate", asked), PAUSE);
    else showEstimate(null);
  }
  function showEstimate(found) {
    estimate = found;
    const notes = (found?.pictures || []).map((one) => one.note).filter(Boolean).map(vqa.message);
    const list = notes.map((text) => el("p.note", {}, text));
    const folded = list.length > 1 && el("details", {}, el("summary", {}, t("estimate.several", { count: list.length })), ...list);
    const tooLong = found && !found.fits && el("p.note", {}, t("estimate.tooLong"));
    const lost = pictures.flatMap(vqa.lostParts);
    $("estimate").replaceChildren(...[...lost, ...(folded ? [folded] : list), tooLong].filter(Boolean));
    vqa.drawFine();
  }
  vqa.on("estimate", (found) => requested && showEstimate(found));
  vqa.on("models", () => {
    if (!estimate) requested = ""; // the model was still loading
    estimateSoon();
  });
  vqa.on("settings", estimateSoon);

  /** Writes the line below the composer. */
  vqa.drawFine = () => {
    const { training, models } = vqa.state;
    const english = !vqa.language.isEnglish && models?.only_english;
    const key = training === "own" ? "train.slower" : training ? "train.slowerOther" : english ? "composer.fineEnglish" : null;
    const words = [key && t(key), estimate && vqa.message(estimate.text)].filter(Boolean);
    $("fine").textContent = words.join(" ") || t("composer.fine");
  };
  vqa.on("models", vqa.drawFine);

  // -- sending -------------------------------------------------------------------------------------

  /** Keeps the draft over a reload of this tab, for example after a lost connection. */
  function saveDraft() {
    const saved = draft || (replaces ? savedDraft : { text: $("question").value, pictures });
    const here = saved && { text: saved.text, pictures: saved.pictures.filter((one) => one.digest), replaces: null };
    vqa.stored("sessionStorage", "vqa-draft", JSON.stringify(here));
  }

  const sending = () => pictures.some((one) => one.busy);
  const isEmpty = () => !$("question").value.trim() && !pictures.length;

  function ready() {
    saveDraft();
    estimateSoon();
    document.querySelector(".submit-button").disabled = isEmpty();
    const box = $("question");
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 220)}px`;
  }

  function submit() {
    sendWhenReady = !vqa.state.view || Boolean(vqa.state.opening);
    if (sendWhenReady || isEmpty() || vqa.state.asking || vqa.state.view.busy) return;
    if (sending()) {
      sendWhenUploaded = { conversation: vqa.state.view.conversation };
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

  /** Asks a question, or with {again: turn} repeats one. It is shown at once. */
  vqa.ask = (asked, { question, pictures: shown } = { question: asked.question, pictures: [] }) => {
    if (vqa.state.asking || vqa.state.view?.busy) {
      vqa.toast(t("composer.busy"));
      return;
    }
    const conversation = vqa.state.view?.conversation ?? null;
    const sent = {
      id: "sent", question, pictures: shown, state: "answering", sending: true, facts: {}, branches: { of: 1 },
    };
    vqa.state.asking = { conversation, sent, from: asked.again || asked.replaces };
    vqa.followEnd();
    vqa.draw();
    vqa.showBusy();
    vqa.send("ask", { ...asked, conversation, ...(conversation ? {} : { system: vqa.promptOfNewChat() }) });
  };

  vqa.on("error", (_, { channel, error }) => {
    if (channel === "act") sendWhenReady = false;
    if (channel !== "ask") return;
    vqa.state.asking = null;
    vqa.draw();
    if (draft) {
      const text = [draft.text, $("question").value].filter(Boolean).join("\n");
      setDraft({ text, pictures: [...draft.pictures, ...pictures].slice(0, MAX_PICTURES), replaces: draft.replaces });
      $("editing").hidden = !replaces;
    }
    draft = null;
    vqa.showBusy();
    // The chat may have been deleted in another tab.
    const conversation = vqa.state.view?.conversation;
    if (error && conversation) vqa.send("act", { do: "refresh", conversation });
  });

  /** Puts a draft into the composer. */
  function setDraft({ text, pictures: shown, replaces: turn }) {
    $("question").value = text;
    [pictures, replaces, sendWhenUploaded] = [shown, turn, null];
    drawTray();
  }

  function clear() {
    setDraft({ text: "", pictures: [], replaces: null });
    $("editing").hidden = true;
  }

  /** Stops editing an earlier question and restores the draft. */
  function editOff() {
    clear();
    if (savedDraft) setDraft(savedDraft);
    savedDraft = null;
  }

  // -- editing an earlier question -----------------------------------------------------------------

  vqa.edit = (turn) => {
    if (!replaces && !isEmpty()) savedDraft = { text: $("question").value, pictures, replaces: null };
    setDraft({ text: turn.question, pictures: [...turn.pictures], replaces: turn.id });
    $("editing").hidden = false;
    $("editing").firstElementChild.textContent = t("composer.editing", { number: turn.number });
    warm();
    $("question").focus();
  };

  vqa.on("do:edit-off", editOff);
  vqa.on("view", (view, { channel }) => {
    if (sendWhenReady) submit();
    if (sendWhenUploaded && sendWhenUploaded.conversation !== view.conversation) sendWhenUploaded = null;
    if (channel === "ask" && draft) {
      draft = null;
      if (savedDraft && isEmpty()) editOff(); // the changed question is on its way
      else saveDraft();
    }
    // When the conversation of an edited question was deleted, the question becomes a new one.
    if (channel === "gone") [replaces, $("editing").hidden] = [null, true];
    if (replaces && !view.turns.some((turn) => turn.id === replaces) && channel !== "ask") editOff();
    else if (pictures.length) drawTray();
  });

  /** Asks a question about a picture immediately (example cards). */
  vqa.askAbout = (picture, question) => {
    vqa.ask({ question, pictures: [picture.digest] }, { question, pictures: [{ ...picture, number: 1 }] });
  };

  // -- input: keyboard, files, paste, drag and drop ------------------------------------------------

  const receivers = { chat: addPictures, compare: (files) => vqa.comparePictures(files) }; // by view
  const receiver = () => receivers[$("vqa").dataset.view];
  const imagesOf = (transfer) =>
    [...(transfer?.files || [])].filter(({ type }) => type.startsWith("image/") || type === "application/pdf" || !type);

  vqa.setups.push(() => {
    const box = $("question");
    box.addEventListener("input", () => {
      if (!sendWhenUploaded) return ready();
      sendWhenUploaded = null; // still being edited
      drawTray();
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey) {
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
      addPictures([...$("files").files]);
      $("files").value = "";
    });
    document.addEventListener("paste", (event) => {
      const files = imagesOf(event.clipboardData);
      // Spreadsheets put an image of the text on the clipboard too; file managers put the file's name there.
      const text = event.clipboardData?.getData("text/plain").trim();
      if (text && !files.some((file) => text.includes(file.name))) return;
      if (files.length && receiver()) {
        event.preventDefault();
        receiver()(files);
      }
    });
    let depth = 0;
    const over = (shown) => $("drop").classList.toggle("shown", Boolean(shown && receiver()));
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
      receiver()?.([...event.dataTransfer.files]);
    });
    // The user may have typed before this script ran; Enter then only added a line break.
    const saved = JSON.parse(vqa.stored("sessionStorage", "vqa-draft"));
    const typed = box.value;
    const text = [saved?.text, typed.replace(/\n$/, "")].filter(Boolean).join("\n");
    setDraft({ pictures: [], replaces: null, ...saved, text });
    if (matchMedia("(hover: hover)").matches) box.focus();
    if (typed.trim() && typed.endsWith("\n")) submit();
  });
  vqa.on("do:attach", () => $("files").click());
})();
