// Pictures made on the page: a drawing pad and the camera.
"use strict";
(() => {
  const { $, el, t } = vqa;
  const SIZE = 448;
  const BLACK = "#111827";
  const COLOURS = { "draw.black": BLACK, "draw.red": "#dc2626", "draw.blue": "#2563eb", "draw.green": "#16a34a", "draw.yellow": "#eab308", "draw.white": "#ffffff" };
  const SYMBOLS = { pen: "✎", circle: "●", square: "■", triangle: "▲", line: "╱", text: "T", eraser: "⌫" };
  const TOOLS = { "draw.pen": "pen", "draw.circle": "circle", "draw.square": "square", "draw.triangle": "triangle",
    "draw.line": "line", "draw.text": "text", "draw.eraser": "eraser" };
  const BACKGROUND = "#ffffff";

  let pad = null; // the elements of the sheet; a drawing is kept until it is used
  vqa.on("do:draw", () => vqa.sheet(t("draw.title"), ...(pad ||= createPad())));

  function createPad() {
    const canvas = el("canvas.pad", { width: SIZE, height: SIZE, tabindex: "0", role: "img",
      "aria-label": t("draw.pad") });
    const context = canvas.getContext("2d");
    let tool = "pen";
    let ink = BLACK;
    let width = 14;
    let start = null;
    let before = null;
    const undo = [];
    const words = el("input.pad-words", { type: "text", hidden: true, maxlength: 60, "aria-label": t("draw.words"), placeholder: t("draw.words") });
    /** Keeps the drawing as it is, to return to. */
    function keep() {
      undo.push(context.getImageData(0, 0, SIZE, SIZE));
      if (undo.length > 20) undo.shift();
      return undo.at(-1);
    }
    const isBlank = () => new Uint32Array(context.getImageData(0, 0, SIZE, SIZE).data.buffer).every((pixel) => pixel === 0xffffffff);
    context.fillStyle = BACKGROUND;
    context.fillRect(0, 0, SIZE, SIZE);
    context.lineCap = context.lineJoin = "round";

    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (tool === "text" && !words.value.trim()) return words.focus();
      canvas.setPointerCapture(event.pointerId);
      before = keep();
      start = at(event);
      stroke(event);
    });
    canvas.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || tool !== "text" || !words.value.trim()) return;
      keep();
      write(SIZE / 2, SIZE / 2);
    });
    words.addEventListener("keydown", (event) => event.key === "Enter" && canvas.focus());
    canvas.addEventListener("pointermove", stroke);
    canvas.addEventListener("pointerup", () => (start = null));
    canvas.addEventListener("pointercancel", () => (start = null));

    function stroke(event) {
      if (!start) return;
      const [x, y] = at(event);
      context.strokeStyle = context.fillStyle = tool === "eraser" ? BACKGROUND : ink;
      context.lineWidth = tool === "eraser" ? 2 * width : width;
      context.beginPath();
      if (tool === "pen" || tool === "eraser") {
        context.moveTo(...start);
        context.lineTo(x, y);
        context.stroke();
        start = [x, y];
        return;
      }
      context.putImageData(before, 0, 0);
      const [fromX, fromY] = start;
      if (tool === "text") return write(x, y);
      if (tool === "line") {
        context.moveTo(fromX, fromY);
        context.lineTo(x, y);
        return context.stroke();
      }
      if (tool === "circle") {
        context.ellipse((fromX + x) / 2, (fromY + y) / 2, Math.abs(x - fromX) / 2, Math.abs(y - fromY) / 2, 0, 0, 7);
      } else if (tool === "square") {
        context.rect(fromX, fromY, x - fromX, y - fromY);
      } else {
        context.moveTo((fromX + x) / 2, fromY);
        context.lineTo(x, y);
        context.lineTo(fromX, y);
        context.closePath();
      }
      context.fill();
    }

    /** Writes the words, centred at a place. */
    function write(x, y) {
      context.fillStyle = ink;
      context.font = `700 ${12 + 2 * width}px sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(words.value.trim(), x, y, SIZE);
    }

    const group = (label, values, chosen, pick, render) =>
      el("div.choices", { role: "radiogroup", "aria-label": label },
        ...Object.entries(values).map(([key, value]) =>
          el("label", { title: t(key) },
            el("input", { type: "radio", name: label, "aria-label": t(key), checked: value === chosen, onchange: () => pick(value) }),
            render(value))));
    const swatch = (value) => {
      const dot = el("span.swatch");
      dot.style.background = value;
      return dot;
    };
    const pickTool = (value) => {
      tool = value;
      words.hidden = tool !== "text";
      if (!words.hidden) words.focus();
    };
    const colours = group(t("draw.colour"), COLOURS, ink, (value) => (ink = value), swatch);
    const any = el("input", { type: "color", value: "#9333ea", "aria-label": t("draw.anyColour"), title: t("draw.anyColour"),
      oninput: (event) => {
        ink = event.target.value;
        for (const radio of colours.querySelectorAll("input")) radio.checked = false;
      } });
    any.addEventListener("click", () => any.dispatchEvent(new Event("input"))); // the colour that it has already
    return [
      canvas,
      el("div.pad-tools", {},
        group(t("draw.tool"), TOOLS, tool, pickTool, (name) => SYMBOLS[name]),
        words,
        el("div.colours", {}, colours, any),
        el("label", {}, t("draw.width"), el("input", { type: "range", min: 4, max: 48, value: width, "aria-label": t("draw.penWidth"), oninput: (event) => (width = Number(event.target.value)) }))),
      el("div.actions", {},
        el("button.chip", { onclick: () => undo.length && context.putImageData(undo.pop(), 0, 0) }, t("draw.undo")),
        el("button.chip", { onclick: () => {
          keep();
          context.fillStyle = BACKGROUND;
          context.fillRect(0, 0, SIZE, SIZE);
        } }, t("draw.clear")),
        el("button.primary", { onclick: async () => {
          if (isBlank()) return vqa.toast(t("draw.blank"), "error");
          if (await attach(canvas, "drawing.png")) pad = null;
        } }, t("draw.use"))),
    ];
  }

  /** Attaches what a canvas shows to the question; resolves to whether the server stored it. */
  async function attach(canvas, name) {
    const type = name.endsWith(".png") ? "image/png" : "image/jpeg";
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, 0.92));
    $("sheet").close();
    return vqa.addPictures([new File([blob], name, { type })]);
  }

  vqa.on("do:camera", async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
    } catch {
      vqa.toast(t(window.isSecureContext ? "camera.none" : "camera.insecure"), "error");
      return;
    }
    const video = el("video.large", { autoplay: true, playsinline: true, muted: true, "aria-label": t("camera.label") });
    video.srcObject = stream;
    vqa.stopCamera?.(); // the button was clicked twice
    vqa.stopCamera = () => stream.getTracks().forEach((track) => track.stop());
    const take = el("button.primary", { disabled: true, onclick: () => {
      const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      attach(canvas, "photograph.jpg");
    } }, t("camera.take"));
    video.addEventListener("loadeddata", () => (take.disabled = false));
    vqa.sheet(t("camera.title"), video, el("div.actions", {}, take));
  });
  vqa.on("sheet-closed", () => {
    vqa.stopCamera?.();
    vqa.stopCamera = null;
  });
})();
