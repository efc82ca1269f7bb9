// Pictures made on the page: a drawing pad and the camera.
"use strict";
(() => {
  const { $, el } = vqa;
  const SIZE = 448;
  const COLOURS = { black: "#111827", red: "#dc2626", blue: "#2563eb", green: "#16a34a", yellow: "#eab308", white: "#ffffff" };
  const BACKGROUND = "#ffffff";

  let pad = null; // the elements of the sheet; a drawing is kept until it is used
  vqa.on("do:draw", () => vqa.sheet("Draw something", ...(pad ||= createPad())));

  function createPad() {
    const canvas = el("canvas.pad", { width: SIZE, height: SIZE, tabindex: "0", role: "img",
      "aria-label": "Drawing pad. Draw with the mouse or a finger." });
    const context = canvas.getContext("2d");
    let tool = "pen";
    let ink = COLOURS.black;
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

    const group = (label, entries, chosen, pick, render) =>
      el("div.choices", { role: "radiogroup", "aria-label": label },
        ...entries.map(([name, value]) =>
          el("label", { title: name },
            el("input", { type: "radio", name: label, "aria-label": name, checked: value === chosen, onchange: () => pick(value) }),
            render(name, value))));
    const swatch = (_, value) => {
      const dot = el("span.swatch");
      dot.style.background = value;
      return dot;
    };
    const symbols = { pen: "✎", circle: "●", square: "■", triangle: "▲" };
    return [
      canvas,
      el("div.pad-tools", {},
        group("Tool", Object.keys(symbols).map((name) => [name, name]), tool, (value) => (tool = value), (name) => symbols[name]),
        group("Colour", Object.entries(COLOURS), ink, (value) => (ink = value), swatch),
        el("label", {}, "Width", el("input", { type: "range", min: 4, max: 48, value: width, "aria-label": "Width of the pen", oninput: (event) => (width = Number(event.target.value)) }))),
      el("div.actions", {},
        el("button.chip", { onclick: () => undo.length && context.putImageData(undo.pop(), 0, 0) }, "Undo"),
        el("button.chip", { onclick: () => {
          undo.push(context.getImageData(0, 0, SIZE, SIZE));
          context.fillStyle = BACKGROUND;
          context.fillRect(0, 0, SIZE, SIZE);
        } }, "Clear"),
        el("button.primary", { onclick: () => {
          attach(canvas, "drawing.png");
          pad = null;
        } }, "Ask about it")),
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
      vqa.toast(
        window.isSecureContext
          ? "No camera is available. Allow it for this page, or add a file."
          : "Browsers allow the camera only on localhost or over https. Add a file instead.",
        "error");
      return;
    }
    const video = el("video.large", { autoplay: true, playsinline: true, muted: true, "aria-label": "Camera" });
    video.srcObject = stream;
    vqa.stopCamera?.(); // the button was clicked twice
    vqa.stopCamera = () => stream.getTracks().forEach((track) => track.stop());
    const take = el("button.primary", { disabled: true, onclick: () => {
      const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      attach(canvas, "photograph.jpg");
    } }, "Take photograph");
    video.addEventListener("loadeddata", () => (take.disabled = false));
    vqa.sheet("Take a photograph", video, el("div.actions", {}, take));
  });
  vqa.on("sheet-closed", () => {
    vqa.stopCamera?.();
    vqa.stopCamera = null;
  });
})();
