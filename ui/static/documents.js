// Pictures from a PDF, whose pages are chosen here, and from a web address.
"use strict";
(() => {
  const { $, el, t } = vqa;

  /** Returns whether a file is a PDF, by its content. */
  vqa.isPdf = async (file) => (await file.slice(0, 1024).text().catch(() => "")).includes("%PDF-");

  /** Uploads a picture, or a page of a PDF; see `vqa.upload`. */
  vqa.uploadPicture = (file, page, signal) => {
    const name = encodeURIComponent(file.name || t("composer.pasted"));
    return vqa.upload(`vqa/pictures?name=${name}${page ? `&page=${page}` : ""}`, file, signal);
  };

  /** Asks which pages of a PDF to add; returns their numbers, none if the person cancels. */
  vqa.choosePages = async (file, most) => {
    const load = (first) => vqa.upload(`vqa/pdf-pages?name=${encodeURIComponent(file.name)}&first=${first}`, file);
    let found = await load(1);
    if (!found) return [];
    if (found.pages === 1) return [1];
    const chosen = new Set();
    const grid = el("ul.pdf-pages", { "aria-label": t("pdf.pages") });
    const add = el("button.primary", { disabled: true }, "");
    const more = el("button.chip", { onclick: next }, t("pdf.more"));
    const count = () => {
      add.disabled = !chosen.size;
      add.textContent = t("pdf.add", { count: chosen.size });
      for (const box of grid.querySelectorAll("input")) box.disabled = !box.checked && chosen.size >= most;
    };
    function page(number, preview) {
      const pick = (event) => {
        chosen[event.target.checked ? "add" : "delete"](number);
        count();
      };
      const name = t("pdf.page", { number });
      return el("li", {}, el("label", {},
        preview ? el("img", { src: preview, alt: "" }) : el("span.no-preview", {}, t("pdf.noPreview")),
        el("span", {}, el("input", { type: "checkbox", onchange: pick, "aria-label": name, disabled: !preview }), name)));
    }
    function draw({ first, images, pages }) {
      grid.append(...images.map((image, place) => page(first + place, image)));
      more.hidden = !images.length || first + images.length > pages;
      count();
    }
    async function next() {
      more.disabled = true;
      const later = await load(found.first + found.images.length);
      more.disabled = false;
      if (!later) return;
      const place = grid.children.length;
      draw((found = later));
      grid.children[place]?.querySelector("input").focus();
    }
    draw(found);
    vqa.sheet(t("pdf.title", { name: file.name }),
      el("p.note", {}, t("pdf.lead", { count: found.pages, most })), grid, el("div.actions.pdf-actions", {}, more, add));
    grid.querySelector("input").focus();
    return new Promise((resolve) => {
      add.addEventListener("click", () => {
        resolve([...chosen].sort((a, b) => a - b));
        $("sheet").close();
      });
      $("sheet").addEventListener("close", () => resolve([]), { once: true });
    });
  };

  // What the model does not get of a picture: pages, frames, scripts and references of a drawing.
  const LOST = ["server.firstPage", "server.firstFrame", "server.firstOfFrames", "server.oneLeftOut", "server.someLeftOut"];
  /** Returns notes on parts of a picture that were left out, to be read before it is asked about. */
  vqa.lostParts = ({ name, changes }) =>
    (changes || []).filter((change) => change.some?.((part) => LOST.includes(part.key)))
      .map((change) => el("p.note", {}, `${name}: ${vqa.message(change)}`));

  // -- by address ----------------------------------------------------------------------------------

  let hosts = [];
  vqa.on("picture_hosts", (found) => {
    hosts = found;
    $("by-address").hidden = !hosts.length;
  });
  vqa.on("do:address", () => {
    const box = el("input", { type: "url", required: true, placeholder: `https://${hosts[0]}/`, "aria-label": t("address.label") });
    const add = el("button.primary", {}, t("address.add"));
    const form = el("form.address", { onsubmit: async (event) => {
      event.preventDefault();
      add.disabled = true;
      const added = await vqa.upload("vqa/picture-address", box.value.trim());
      add.disabled = false;
      if (!added) return box.focus();
      $("sheet").close();
      vqa.usePicture(added);
    } }, box, add);
    vqa.sheet(t("address.title"), el("p.note", {}, t("address.hosts", { hosts: hosts.join(", ") })), form);
    box.focus();
  });
})();
