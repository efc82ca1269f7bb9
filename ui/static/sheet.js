// The dialog over the page: a picture at full size, the model's view of it, the attention map.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  let opener = null; // the element that had the focus before, and its turn
  let expected = null; // id of the turn or picture whose reply is to be shown

  /** Opens the dialog with a title and content. */
  vqa.sheet = (title, ...content) => {
    const sheet = $("sheet");
    if (!sheet.open) {
      const node = document.activeElement;
      opener = { node, turn: node?.closest("[data-turn]")?.dataset.turn };
    }
    expected = null;
    sheet.setAttribute("aria-label", title);
    sheet.replaceChildren(
      el("header", {}, el("h2", {}, title),
        el("button.icon", { "aria-label": t("page.close"), onclick: () => sheet.close() }, icon("x"))),
      el("div.sheet-body", {}, ...content),
      $("toasts")); // while a modal dialog is open, nothing outside of it can be clicked
    if (!sheet.open) sheet.showModal();
    return sheet;
  };

  /** Asks for confirmation before something is deleted, for good unless `final` is false. */
  vqa.confirm = (title, what, onConfirm, final = true) => {
    const sheet = vqa.sheet(title,
      what ? el("p.confirm", {}, what) : null,
      final ? el("p.note", {}, t("confirm.final")) : null,
      el("div.actions", {},
        el("button.chip.keep", { onclick: () => sheet.close() }, t("confirm.keep")),
        el("button.primary.danger", { onclick: () => (sheet.close(), vqa.focusView(), onConfirm()) }, t("page.delete"))));
    sheet.querySelector(".keep").focus(); // so that a key held down does not delete
  };
  const waiting = (words) => el("p.state", {}, el("span.pulse", { "aria-hidden": "true" }), words);
  vqa.setups.push(() => {
    $("sheet").addEventListener("close", () => {
      vqa.placeToasts();
      vqa.emit("sheet-closed", null);
      // The browser restores the focus before this event. It cannot where the element was redrawn
      // meanwhile; then the focus is on the body or still in here.
      const active = document.activeElement;
      if (active && active !== document.body && !$("sheet").contains(active)) return;
      const again = opener?.turn && document.querySelector(`[data-turn="${opener.turn}"] .look`);
      if (opener?.node?.isConnected) opener.node.focus();
      else if (again) again.focus();
      else vqa.focusView();
    });
    let outside = false; // whether the click began outside; a drag may end anywhere
    $("sheet").addEventListener("pointerdown", (event) => (outside = event.target === $("sheet")));
    $("sheet").addEventListener("click", (event) => {
      if (outside && event.target === $("sheet")) $("sheet").close();
    });
  });

  // -- a picture, and the model's view of it -------------------------------------------------------

  vqa.openPicture = (picture) => {
    const [width, height] = picture.size || [];
    vqa.sheet(
      t("picture.title", picture),
      ...vqa.pictureTools(picture),
      el("div.saw", { id: "saw" },
        el("p.note", {}, [width ? t("picture.pixels", { width, height }) : "", ...changesOf(picture)].join(" ")),
        el("button.chip", { onclick: () => {
          expected = picture.digest;
          $("saw").replaceChildren(waiting(t("picture.asking")));
          vqa.send("look", { do: "saw", digest: picture.digest });
        } }, icon("eye"), t("picture.saw"))),
    );
  };
  const changesOf = (picture) =>
    picture.changes?.length ? [t("picture.changed", { changes: picture.changes.map(vqa.message).join(", ") })] : [];

  vqa.on("saw", (saw) => {
    if (!$("sheet").open || saw.digest !== expected) return;
    const pictures = saw.shown.map((one) =>
      el("figure", {},
        el("img.pixels", { src: one.data, alt: t("picture.view") }),
        el("figcaption", {}, one.size.map((side) => vqa.number(side)).join(" × "))));
    const words = [];
    if (saw.tokens !== null) words.push(t("picture.tokens", { count: saw.tokens }));
    else words.push(t("picture.loading"));
    words.push(...changesOf(saw));
    $("saw").replaceChildren(el("p.note", {}, words.join(" ")), el("div.seen", {}, ...pictures));
  });

  // -- attention map -------------------------------------------------------------------------------

  vqa.on("look", (turn) => {
    vqa.sheet(t("look.title"), waiting(t("look.computing")));
    expected = turn.id;
    vqa.send("look", { do: "look", conversation: vqa.state.view.conversation, turn: turn.id });
  });
  vqa.on("error", (text, { channel }) => {
    if (channel !== "look" || !expected || !$("sheet").open) return;
    ($("saw") || $("sheet").querySelector(".sheet-body")).replaceChildren(el("p.note", {}, text));
  });

  // The same colour map and opacity as in vqa_app/cli/heatmap.py.
  const ANCHORS = [[20, 11, 54], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  const colour = (value) => {
    const place = value * (ANCHORS.length - 1);
    const low = Math.min(Math.floor(place), ANCHORS.length - 2);
    return ANCHORS[low].map((from, k) => from + (ANCHORS[low + 1][k] - from) * (place - low));
  };

  /** Keys of the texts for the levels of the image gain. */
  vqa.GAINS = { much: "look.much", some: "look.some", not: "look.not" };
  vqa.on("looked", (found) => {
    if (!$("sheet").open || found.turn !== expected) return;
    const drawers = found.pictures.map((picture) => overlay(picture));
    let word = 0;
    let opacity = 0.7;
    const draw = () => drawers.forEach((drawer) => drawer.draw(word, opacity));
    const buttons = [t("look.wholeAnswer"), ...found.words].map((text, position) =>
      el("button.word", { "aria-pressed": String(position === 0),
          onclick: (event) => {
            word = position;
            for (const other of buttons) other.setAttribute("aria-pressed", "false");
            event.currentTarget.setAttribute("aria-pressed", "true");
            draw();
          } },
        text));
    const slider = el("input", { type: "range", min: 0, max: 1, step: 0.05, value: opacity,
      "aria-label": t("look.opacity"),
      oninput: (event) => {
        opacity = Number(event.target.value);
        draw();
      } });
    const head = el("div.verdict", {});
    if (found.level) head.append(el(`span.badge.${found.level}`, {}, t(vqa.GAINS[found.level])));
    if (found.confidence) head.append(el("span.facts", {}, vqa.confidence(found)));
    const notes = [];
    if (found.gain !== undefined) {
      notes.push(el("p.note", {}, comparedWithGrey(found.gain, found.pictures.length)));
    }
    if (found.missing) notes.push(el("p.note", {}, vqa.message(found.missing)));
    if (found.other_model) notes.push(el("p.note", {}, t("look.otherModel", found.other_model)));
    const mapped = found.words.length > 0;
    vqa.sheet(t("look.title"),
      el("p.asked", {}, found.question),
      head,
      mapped ? el("div.words", { role: "group", "aria-label": t("look.words") }, ...buttons) : null,
      el("div.overlays", {}, ...drawers.map((drawer) => drawer.node)),
      mapped ? el("label.opacity", {}, t("look.overlay"), slider) : null,
      ...notes);
    draw();
  });

  function comparedWithGrey(gain, count) {
    const factor = Math.exp(Math.abs(gain));
    if (factor < 1.1) return t("look.asLikely", { count });
    const digits = factor < 10 ? 1 : 0;
    const times = factor > 1000
      ? t("look.over", { number: 1000 })
      : vqa.number(factor, { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return `${t(gain > 0 ? "look.likelier" : "look.lessLikely", { count, times })} ${t("look.noVerdict")}`;
  }

  function overlay(picture) {
    const image = el("img", { src: `vqa/pictures/${picture.digest}?size=large`, alt: t("picture.number", picture) });
    const canvas = el("canvas", { "aria-hidden": "true" });
    const node = el("div.overlay", {}, image, canvas);
    image.addEventListener("load", () => node.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight));
    if (!picture.maps) return { node, draw: () => {} };
    const bytes = Uint8Array.from(atob(picture.maps), (letter) => letter.charCodeAt(0));
    const { rows, columns } = picture;
    canvas.width = columns;
    canvas.height = rows;
    return {
      node,
      draw(word, opacity) {
        const context = canvas.getContext("2d");
        const pixels = context.createImageData(columns, rows);
        for (let cell = 0; cell < rows * columns; cell++) {
          const value = bytes[word * rows * columns + cell] / 255;
          const [red, green, blue] = colour(value);
          const alpha = 255 * opacity * (0.3 + 0.7 * value);
          pixels.data.set([red, green, blue, alpha], cell * 4);
        }
        context.putImageData(pixels, 0, 0);
      },
    };
  }
})();
