// What the visitor has trained and uploaded: rename, share and delete it.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  const KINDS = {
    run: { title: "library.models", remove: "library.deleteModel" },
    data: { title: "library.dataSets", remove: "library.deleteData" },
  };
  let changed = false; // whether the next reply is to a change
  let known = ""; // the state of training by which the list was read
  const list = () => vqa.send("library", { do: "list" });
  const change = (action, kind, entry, more = {}) => {
    changed = true;
    vqa.send("library", { do: action, kind, name: entry.name, ...more });
  };

  vqa.on("shown", (name) => name === "train" && list());
  vqa.on("training", ({ job, sources }) => { // a run may have ended, or a data set been uploaded
    const now = JSON.stringify([job?.name, job?.state, sources]);
    if (now !== known && $("vqa").dataset.view === "train") list();
    known = now;
  });
  vqa.on("uploaded", list); // may have replaced a data set of the same name
  // The list shows what the server has, whatever was ticked. If reading it fails, too, that is all.
  vqa.on("error", (_, { channel }) => {
    if (channel !== "library" || !changed) return;
    changed = false;
    list();
  });

  vqa.on("library", (library) => {
    const kinds = Object.keys(KINDS).filter((kind) => library[kind].length);
    if ($("library").querySelector("form")) return; // a name is being written
    $("library").hidden = !kinds.length;
    vqa.redraw($("library"), () =>
      $("library").replaceChildren(
        el("h2", {}, t("library.title")),
        ...kinds.flatMap((kind) => [
          el("h3", {}, t(KINDS[kind].title)),
          el("ul.possessions", {}, ...library[kind].map((entry) => rowOf(kind, entry))),
        ])));
    if (changed) vqa.send("train", { do: "status" });
    changed = false;
  });

  function rowOf(kind, entry) {
    const facts = [
      t("library.onDisk", { size: vqa.bytes(entry.bytes) }),
      new Date(entry.changed * 1000).toLocaleDateString(vqa.locale, { dateStyle: "medium" }),
      ...(entry.finished === false ? [t("library.unfinished")] : []),
      ...(entry.needed_by?.length ? [t("library.neededBy", { models: entry.needed_by.map((label) => label ?? t("library.someoneElses")).join(", ") })] : []),
    ];
    const named = (key) => `${t(key)}: ${entry.label}`;
    const share = el("input", { type: "checkbox", "aria-label": named("library.share"), onchange: () => change("share", kind, entry, { shared: share.checked }) });
    share.checked = entry.shared;
    const item = el("li", {},
      el("div.texts", {}, el("b", { dir: "auto" }, entry.label), el("p.note", {}, facts.join(" · "))),
      el("label.tick", {}, share, t("library.share")),
      el("div.row-tools", {},
        el("button.icon", { "aria-label": named("sidebar.rename"), title: t("sidebar.rename"), onclick: () => rename(item, kind, entry) }, icon("pen")),
        el("button.icon", { "aria-label": named("page.delete"), title: t("page.delete"),
          onclick: () => vqa.confirm(t(KINDS[kind].remove), `${entry.label} · ${facts[0]}`, () => change("delete", kind, entry)) }, icon("bin"))));
    return item;
  }

  function rename(item, kind, entry) {
    const box = el("input", { "aria-label": t("library.newName"), required: true });
    box.value = entry.label;
    const texts = item.querySelector(".texts");
    const form = el("form.texts", { onsubmit: async (event) => {
      event.preventDefault();
      const renamed = { do: "rename", kind, name: entry.name, title: box.value };
      const unchanged = box.value.trim() === entry.label;
      if (!unchanged && !(await vqa.save(form, "library", renamed))) return box.focus();
      close();
      if (unchanged) return;
      changed = true;
      list();
    } },
    box, el("div.actions", {}, el("button.primary", { type: "submit" }, t("page.save")),
      el("button.link", { type: "button", onclick: close }, t("page.cancel"))));
    function close() {
      form.replaceWith(texts);
      item.querySelector(".row-tools button").focus();
    }
    form.addEventListener("keydown", (event) => event.key === "Escape" && close());
    texts.replaceWith(form);
    box.select();
  }
})();
