// A picture at full size that can be rotated, and on which a region can be marked to ask about.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  const SMALLEST = 8; // pixels; the server refuses smaller regions

  /** Returns the elements that show a picture with its tools. */
  vqa.pictureTools = (picture) => {
    const image = el("img.large", { src: `vqa/pictures/${picture.digest}?size=large`, alt: picture.name, draggable: "false" });
    if (!picture.size) return [image];
    const [width, height] = picture.size;
    const frame = el("div.region", { tabindex: "0", role: "application", hidden: true,
      "aria-label": t("region.label"), "aria-describedby": "region-keys" },
      ...["nw", "ne", "sw", "se"].map((corner) => el(`span.handle.${corner}`, { "data-corner": corner })));
    const stage = el("div.picture-stage", {}, image, frame);
    const status = el("p.note", { role: "status" });
    const whole = el("input", { type: "checkbox" });
    const mark = el("button.chip", { "aria-pressed": "false", onclick: () => (box ? unmark() : begin()) }, icon("crop"), t("region.mark"));
    const asking = el("div.region-tools", { hidden: true },
      status,
      el("p.note", { id: "region-keys" }, t("region.keys")),
      el("label.tick", {}, whole, t("region.whole")),
      el("button.primary", { onclick: ask }, t("region.ask")));
    let box = null; // [left, top, right, bottom] in pixels of the picture
    let drag = null; // {start, from, corner}

    /** Where the picture is drawn inside of the stage: offset and pixels of the page per pixel. */
    function place() {
      const { clientWidth, clientHeight, offsetLeft, offsetTop } = image;
      const scale = Math.min(clientWidth / width, clientHeight / height);
      return { scale, x: offsetLeft + (clientWidth - scale * width) / 2, y: offsetTop + (clientHeight - scale * height) / 2 };
    }
    const within = (value, low, high) => Math.min(high, Math.max(low, Math.round(value)));
    function at(event) {
      const edge = stage.getBoundingClientRect();
      const { scale, x, y } = place();
      return [within((event.clientX - edge.left - x) / scale, 0, width), within((event.clientY - edge.top - y) / scale, 0, height)];
    }

    function draw() {
      const { scale, x, y } = place();
      const [left, top, right, bottom] = box;
      Object.assign(frame.style, { left: `${x + left * scale}px`, top: `${y + top * scale}px`,
        width: `${(right - left) * scale}px`, height: `${(bottom - top) * scale}px` });
      status.textContent = t("region.size", { width: right - left, height: bottom - top, left, top });
    }
    function show(next) {
      box = next;
      frame.hidden = false;
      if (!drag) asking.hidden = false; // it moves the picture, which would run away under the pointer
      stage.classList.add("marking");
      mark.setAttribute("aria-pressed", "true");
      draw();
    }
    function begin() {
      show([width / 4, height / 4, width - width / 4, height - height / 4].map(Math.round));
      asking.scrollIntoView({ block: "nearest" });
      stage.scrollIntoView({ block: "nearest" }); // it matters more, where both do not fit
      frame.focus({ preventScroll: true });
    }
    function unmark() {
      box = null;
      frame.hidden = asking.hidden = true;
      stage.classList.remove("marking");
      mark.setAttribute("aria-pressed", "false");
      mark.focus();
    }
    const moved = ([left, top, right, bottom], dx, dy) => {
      const [x, y] = [within(dx, -left, width - right), within(dy, -top, height - bottom)];
      return [left + x, top + y, right + x, bottom + y];
    };
    const grown = ([left, top, right, bottom], dx, dy) => [left, top,
      within(right + dx, Math.min(left + SMALLEST, width), width), within(bottom + dy, Math.min(top + SMALLEST, height), height)];
    /** The region between two points, at least as large as the server accepts. */
    function between([ax, ay], [bx, by]) {
      const [left, top] = [Math.min(ax, bx, Math.max(0, width - SMALLEST)), Math.min(ay, by, Math.max(0, height - SMALLEST))];
      return grown([left, top, Math.max(ax, bx), Math.max(ay, by)], 0, 0);
    }

    stage.addEventListener("pointerdown", (event) => {
      if (event.button || (event.pointerType !== "mouse" && !box)) return; // a finger scrolls until marking begins
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      const corner = event.target.dataset.corner;
      const start = at(event);
      if (corner) {
        const [left, top, right, bottom] = box;
        drag = { start: [corner[1] === "w" ? right : left, corner[0] === "n" ? bottom : top] };
      } else drag = { start, from: event.target === frame ? box : null };
    });
    stage.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const [x, y] = at(event);
      if (drag.from) show(moved(drag.from, x - drag.start[0], y - drag.start[1]));
      else if (box || Math.hypot(x - drag.start[0], y - drag.start[1]) >= SMALLEST) show(between(drag.start, [x, y]));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, () => {
        const marked = drag && box;
        drag = null;
        if (!marked) return;
        show(box);
        frame.focus({ preventScroll: true });
      });
    }
    frame.addEventListener("keydown", (event) => {
      const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
      const step = (side) => Math.max(1, Math.round(side / 50));
      if (event.key === "Enter") ask();
      else if (event.key === "Escape") unmark();
      else if (dx || dy) show((event.shiftKey ? grown : moved)(box, dx * step(width), dy * step(height)));
      else return;
      event.preventDefault(); // Escape would close the sheet
      event.stopPropagation();
    });
    image.addEventListener("load", () => box && draw());
    new ResizeObserver(() => box && draw()).observe(image);

    async function edit(change) {
      const buttons = [...$("sheet").querySelectorAll(".sheet-body button")];
      for (const button of buttons) button.disabled = true;
      const made = await vqa.upload(`vqa/pictures/${picture.digest}/edits`, JSON.stringify(change));
      for (const button of buttons) button.disabled = false;
      return made;
    }
    async function ask() {
      const made = await edit({ region: box });
      if (!made || !vqa.useEdited(picture, made, whole.checked)) return;
      $("sheet").close();
      $("question").focus();
    }
    const rotate = (degrees) => async () => {
      const made = await edit({ rotate: degrees });
      if (!made || !vqa.useEdited(picture, made)) return;
      vqa.openPicture({ ...made, number: picture.number });
      $("sheet").querySelector(`[data-rotate="${degrees}"]`).focus();
    };
    const turn = (degrees, name, label) =>
      el("button.chip.only-icon", { "data-rotate": degrees, "aria-label": label, title: label, onclick: rotate(degrees) }, icon(name));
    return [
      stage,
      el("div.actions", {}, mark,
        turn(270, "turn-left", t("region.rotateLeft")), turn(90, "turn-right", t("region.rotateRight"))),
      asking,
      picture.region ? wholeOf(picture) : null,
    ];
  };

  /** Shows the picture that a region is of, with the region in it. */
  function wholeOf(picture) {
    const { of, name, box, whole } = picture.region;
    const image = el("img", { src: `vqa/pictures/${of}?size=small`, alt: "" });
    const frame = el("span.region");
    const share = (value, side) => `${(100 * value) / whole[side]}%`;
    Object.assign(frame.style, { left: share(box[0], 0), top: share(box[1], 1),
      width: share(box[2] - box[0], 0), height: share(box[3] - box[1], 1) });
    const figure = el("figure.region-of", {}, el("div", {}, image, frame), el("figcaption", {}, t("region.of", { name })),
      el("button.chip", { onclick: () => {
        if (!vqa.useEdited(picture, { digest: of, name, size: whole, changes: [] })) return;
        $("sheet").close();
        $("question").focus();
      } }, t("region.useWhole")));
    image.addEventListener("error", () => figure.remove()); // it was deleted
    return figure;
  }

  /** Says below a question's pictures which of them are regions. */
  vqa.regionNotes = (pictures) =>
    pictures.filter((one) => one.region).map(({ number, region: { name } }) =>
      el("p.note", {}, pictures.length > 1 ? t("region.askedNumber", { number, name }) : t("region.asked", { name })));
})();
