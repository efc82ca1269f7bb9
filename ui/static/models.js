// Models of the hub: what to know before a download, models for photographs, those on this machine.
"use strict";
(() => {
  const { $, el, icon, t } = vqa;
  let waiting = null; // what is to happen once the model is confirmed: {go, title}

  /**
   * Calls `go` with the fields of a request that uses a model, {model, download} or {named, download}.
   * If the model is not on this machine, its size is shown first, and `go` is called only on *Download*.
   */
  vqa.withModel = (choice, go) => {
    if (choice.here) return go({ model: choice.key });
    ask({ do: "describe", ...(choice.named ? { named: choice.named } : { model: choice.key }) }, go, vqa.message(choice.label) ?? choice.named);
  };
  /** Like `withModel`, with a model for photographs that the server suggests. */
  vqa.withPhotographModel = (go) => ask({ do: "suggest" }, go, t("download.photographs"));

  function ask(request, go, title) {
    waiting = { go, title, model: request.model, named: request.named };
    vqa.sheet(title, el("p.state", { role: "status" }, el("span.pulse", { "aria-hidden": "true" }), t("download.asking")));
    vqa.send("models", request);
  }
  vqa.on("sheet-closed", () => $("sheet").open || (waiting = null)); // it may be open again by now
  vqa.on("error", (_, { channel }) => channel === "models" && waiting && $("sheet").close());

  vqa.on("model_described", (model) => {
    if (!waiting || !$("sheet").open) return;
    const asked = waiting;
    const { go, title, named } = asked;
    // A late reply about another model must not stand above the button that downloads this one.
    if ((model.named ?? undefined) !== named || (asked.model && asked.model !== model.key)) return;
    const done = (download) => {
      $("sheet").close();
      go({ ...(named ? { named } : { model: model.key }), ...(download ? { download } : {}) });
    };
    if (model.here) return done(false);
    const row = (name, value) => (value?.length ? [el("dt", {}, name), el("dd", {}, value)] : []);
    const others = model.others && el("select", { "aria-label": t("download.choose"),
        onchange: ({ target }) => vqa.send("models", { do: "describe", model: target.value, others: true }) },
      ...model.others.map((one) => el("option", { value: one.key, selected: one.key === model.key },
        t(one.here ? "download.optionHere" : "download.option", { model: one.label, size: vqa.bytes(one.size) }))));
    const figures = model.figures?.length
      ? t("download.figuresFrom", { figures: vqa.message(model.figures), source: vqa.message(model.figures_source) })
      : "";
    vqa.sheet(title,
      others ? el("div.field", {}, others) : null,
      el("p.note", {}, vqa.message(model.note ?? [])),
      el("dl.facts-list", {},
        ...row(t("download.model"), model.name),
        ...(model.size ? row(t("download.size"), t("download.sizeFree", { size: vqa.bytes(model.size), free: vqa.bytes(model.disk) })) : []),
        ...(model.memory ? row(t("download.memory"), t("download.memoryFree", { size: vqa.bytes(model.memory), free: vqa.bytes(model.memory_free) })) : []),
        ...row(t("download.licence"), vqa.message(model.licence ?? [])),
        ...row(t("download.figures"), figures)),
      ...model.problems.map((problem) => el("p.failed", { role: "alert" }, vqa.message(problem))),
      el("div.actions", {},
        el("button.chip.keep", { onclick: () => $("sheet").close() }, t("page.cancel")),
        model.possible
          ? el("button.primary", { onclick: () => done(true) },
              t(model.problems.length ? "download.startAnyway" : "download.start"))
          : null));
    waiting = asked; // opening a sheet in place of another one keeps it
    $("sheet").querySelector("select, .keep").focus(); // so that a key held down downloads nothing
  });

  // -- another model for one answer ----------------------------------------------------------------

  /** Lets the person choose a model, and asks the question of a turn again, of that model. */
  vqa.askOther = (turn) => {
    const answer = (fields) => vqa.ask({ again: turn.id, ...fields }, turn);
    const groups = vqa.modelGroups(vqa.state.models.choices).map(([name, members]) =>
      el("div", { role: "group", "aria-label": name },
        el("p.group", { "aria-hidden": "true" }, name),
        ...members.map((choice) =>
          el("button.model-row", { onclick: () => {
            $("sheet").close();
            vqa.withModel(choice, answer);
          } }, el("span", {}, vqa.message(choice.label)), el("small", {}, vqa.message(choice.detail))))));
    vqa.sheet(t("download.another"), el("div.model-rows", {}, ...groups)).querySelector(".model-row")?.focus();
  };
  /** Asks the question of a turn again, of a model that knows photographs, which answers from then on. */
  vqa.askAboutPhotograph = (turn) =>
    vqa.withPhotographModel((fields) => vqa.ask({ again: turn.id, keep: true, ...fields }, turn));
  vqa.on("do:photographs", () => vqa.withPhotographModel((fields) => vqa.send("pick", fields)));

  // -- models on this machine ----------------------------------------------------------------------

  vqa.showInstalled = () => vqa.send("models", { do: "installed" });
  vqa.on("installed", ({ models, may_delete: mayDelete }) => {
    const row = (model) =>
      el("li", {},
        el("div.texts", {}, el("span", {}, model.name),
          el("small.note", {}, [vqa.bytes(model.size),
            t("installed.used", { when: new Date(1000 * model.used).toLocaleDateString(vqa.locale) }),
            ...(model.complete ? [] : [t("installed.incomplete")])].join(" · "))),
        mayDelete
          ? el("button.icon", { "aria-label": t("installed.delete", { model: model.name }), title: t("page.delete"),
              onclick: () => remove(model) }, icon("bin"))
          : null);
    vqa.sheet(t("installed.title"),
      models.length ? el("ul.installed", {}, ...models.map(row)) : el("p.note", {}, t("installed.none")),
      models.length && !mayDelete ? el("p.note", {}, t("installed.onlyOperator")) : null);
    vqa.send("act", { do: "models" });
  });
  function remove(model) {
    const words = [t("installed.deleteText", { size: vqa.bytes(model.size) })];
    if (model.runs.length) words.push(t("installed.deleteRuns", { count: model.runs.length, runs: model.runs.join(", ") }));
    vqa.confirm(t("installed.deleteTitle", { model: model.label }), words.join(" "),
      () => vqa.send("models", { do: "delete", model: model.key }), false);
  }
})();
