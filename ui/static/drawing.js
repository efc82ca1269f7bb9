// Pictures made on the page: a drawing pad and the camera.
"use strict";
(() => {
  const { $, el, t } = vqa;
  const SIZE = 448;
  const BLACK = "#111827";
  const COLOURS = { "draw.black": BLACK, "draw.red": "#dc2626", "draw.blue": "#2563eb", "draw.green": "#16a34a", "draw.yellow": "#eab308", "draw.white": "#ffffff" };
  const SYMBOLS = { pen: "✎", circle: "●", square: "■", triangle: "▲" };
  const TOOLS = { "draw.pen": "pen", "draw.circle": "circle", "draw.square": "square", "draw.triangle": "triangle" };
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
    context.fillStyle = BACKGROUND;
    context.fillRect(0, 0, SIZE, SIZE);
    context.lineCap = context.lineJoin = "round";

    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      before = context.getImageData(0, 0, SIZE, SIZE);
      undo.push(before);
      if (undo.length > 20) undo.shift();
      start = at(event);
      stroke(event);
    });
    canvas.addEventListener("pointermove", stroke);
    canvas.addEventListener("pointerup", () => (start = null));
    canvas.addEventListener("pointercancel", () => (start = null));

    function stroke(event) {
      if (!start) return;
      const [x, y] = at(event);
      context.strokeStyle = context.fillStyle = ink;
      context.lineWidth = width;
      context.beginPath();
      if (tool === "pen") {
        context.moveTo(...start);
        context.lineTo(x, y);
        context.stroke();
        start = [x, y];
        return;
      }
      context.putImageData(before, 0, 0);
      const [fromX, fromY] = start;
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
    return [
      canvas,
      el("div.pad-tools", {},
        group(t("draw.tool"), TOOLS, tool, (value) => (tool = value), (name) => SYMBOLS[name]),
        group(t("draw.colour"), COLOURS, ink, (value) => (ink = value), swatch),
        el("label", {}, t("draw.width"), el("input", { type: "range", min: 4, max: 48, value: width, "aria-label": t("draw.penWidth"), oninput: (event) => (width = Number(event.target.value)) }))),
      el("div.actions", {},
        el("button.chip", { onclick: () => undo.length && context.putImageData(undo.pop(), 0, 0) }, t("draw.undo")),
        el("button.chip", { onclick: () => {
          undo.push(context.getImageData(0, 0, SIZE, SIZE));
          context.fillStyle = BACKGROUND;
          context.fillRect(0, 0, SIZE, SIZE);
        } }, t("draw.clear")),
        el("button.primary", { onclick: () => {
          attach(canvas, "drawing.png");
          pad = null;
        } }, t("draw.use"))),
    ];
  }

  function attach(canvas, name) {
    canvas.toBlob((blob) => {
      $("sheet").close();
      vqa.addPictures([new File([blob], name, { type: blob.type })]);
    }, name.endsWith(".png") ? "image/png" : "image/jpeg", 0.92);
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
