// Training: choose and check data, follow the run, use the trained model.
"use strict";
(() => {
  const { $, el, t } = vqa;
  let timer = null;
  let sources = null;
  let checking = false; // the chosen data is being checked
  let pendingStart = null; // the start request that waits for the check
  let busy = false;
  let byOther = false; // whether the running training is another owner's
  let wasRunning = false;
  let job = null;
  let chosenBase = null; // key of the model to train, if it is not the one in use
  let switchingTo = null; // key of the run that is loading to answer in the chat

  const refresh = () => vqa.send("train", { do: "status" });
  vqa.on("shown", (name) => name === "train" && refresh());
  vqa.on("hello", refresh);

  vqa.on("training", (training) => {
    if (!sources) drawForm();
    drawBases(training);
    const key = JSON.stringify(training.sources);
    if (key !== sources) {
      drawSources(training.sources);
      sources = key;
    }
    busy = training.busy;
    byOther = training.others;
    buttons();
    job = training.job;
    drawJob();
    const watched = $("vqa").dataset.view === "train";
    const isRunning = Boolean(job) && busy && !byOther;
    if (wasRunning && !isRunning && job && !watched) vqa.toast(t(ENDS[job.state], job), job.state === "failed" ? "error" : "plain");
    if (isRunning && !wasRunning && watched) $("job").scrollIntoView({ block: "nearest" });
    wasRunning = isRunning;
    vqa.state.training = busy ? (byOther ? "other" : "own") : null;
    vqa.drawFine();
    clearTimeout(timer);
    // Seldom while nothing runs: another tab or another owner may start a training.
    timer = setTimeout(refresh, !busy ? 20000 : watched ? 1000 : 4000);
  });
  vqa.on("error", (_, { channel }) => {
    if (channel !== "train" || !checking) return;
    checking = false;
    pendingStart = null;
    $("preflight").replaceChildren();
    buttons();
  });
  const ENDS = { done: "train.ended", stopped: "train.endedStopped", failed: "train.endedFailed" };

  /** Draws the models that can be trained; the one in use is chosen until another one is. */
  function drawBases({ base, bases }) {
    const select = $("train-model");
    const chosen = bases.some(({ key }) => key === chosenBase) ? chosenBase : base;
    const key = JSON.stringify(bases);
    if (select.dataset.drawn !== key) {
      select.dataset.drawn = key;
      const groups = vqa.modelGroups(bases);
      select.replaceChildren(...groups.map(([label, members]) => el("optgroup", { label },
        ...members.map((one) => el("option", { value: one.key }, vqa.message(one.label))))));
    }
    select.value = chosen;
    drawLead(select.selectedOptions[0]?.label ?? "");
  }

  /** Writes what this view is for, with the model's name in bold. */
  function drawLead(model) {
    const [before, after] = t("train.lead", { model: "\n" }).split("\n");
    $("train-lead").replaceChildren(before, el("b", { id: "train-base" }, model), after);
  }

  function buttons() {
    const start = $("train-form").querySelector("[type=submit]");
    start.disabled = busy || checking;
    start.textContent = t(!busy ? "train.start" : byOther ? "train.inProgressOther" : "train.inProgress");
    $("train-form").querySelector(".check").disabled = checking;
  }

  const STAGES = [
    ["lora", t("train.lora"), t("train.loraHint")],
    ["projector", t("train.projector"), t("train.projectorHint")],
    ["full", t("train.full"), t("train.fullHint")],
  ];

  /** Draws the data sets; ticks are kept, and newly uploaded ones are ticked. */
  function drawSources(list) {
    const known = new Map([...$("train-form").querySelectorAll("[name=source]:enabled")].map((box) => [box.value, box.checked]));
    $("train-sources").replaceChildren(...list.map((source) => {
      const box = el("input", { type: "checkbox", name: "source", value: source.key, disabled: source.empty });
      const added = source.key === "mine" || (sources && source.key.startsWith("upload:"));
      box.checked = !source.empty && (known.get(source.key) ?? Boolean(added));
      return el("label.tick", {}, box, source.key === "mine" ? t("train.mine", { rows: t("teach.rows", source) }) : source.label);
    }));
  }

  function drawForm() {
    const base = el("select", { id: "train-model" });
    base.addEventListener("change", () => {
      chosenBase = base.value;
      drawLead(base.selectedOptions[0].label);
    });
    const stage = el("select", { id: "train-stage" }, ...STAGES.map(([value, label]) => el("option", { value }, label)));
    const hint = el("small", {}, STAGES[0][2]);
    stage.addEventListener("change", () => (hint.textContent = STAGES.find(([value]) => value === stage.value)[2]));
    const number = (id, label, hintText, attributes) =>
      el("div.field", {}, el("label", { for: id }, label), el("input", { id, type: "number", ...attributes }), el("small", {}, hintText));
    const rehearse = el("input", { type: "checkbox", id: "train-rehearse" });
    rehearse.checked = true;
    const file = el("input", { type: "file", accept: ".zip,.tar,.tgz,.gz,.csv,.tsv,.json,.jsonl,.parquet", hidden: true, "aria-label": t("train.dataFile") });
    file.addEventListener("change", async () => {
      const [chosen] = file.files;
      const found = chosen && (await vqa.upload(`vqa/datasets?name=${encodeURIComponent(chosen.name)}`, chosen));
      if (found) {
        refresh();
        vqa.emit("uploaded", found);
      }
      if (found?.replaced) vqa.toast(t(found.unshared ? "train.replacedShared" : "train.replaced"));
      file.value = "";
    });
    const chosen = () => [...$("train-form").querySelectorAll("[name=source]:checked")].map((box) => box.value);
    const valueOf = (id) => ($(id).value === "" ? null : Number($(id).value));
    const request = (action) => ({
      do: action, sources: chosen(), model: base.value, stage: stage.value, epochs: valueOf("train-epochs"), lr: valueOf("train-lr"),
      name: $("train-name").value, rehearse: rehearse.checked,
    });
    $("train-form").replaceChildren(
      el("fieldset", {}, el("legend", {}, t("train.data")), el("div", { id: "train-sources" }),
        el("button.link", { type: "button", onclick: () => file.click() }, t("train.upload")), file),
      el("div.field", {}, el("label", { for: "train-model" }, t("train.baseModel")), base, el("small", {}, t("train.baseModelHint"))),
      el("div.columns", {},
        el("div.field", {}, el("label", { for: "train-stage" }, t("train.stage")), stage, hint),
        number("train-epochs", t("train.epochs"), t("train.epochsHint"), { min: 0.1, max: 200, step: "any" }),
        number("train-lr", t("train.lr"), t("train.lrHint"), { min: 0, max: 1, step: "any" }),
        el("div.field", {}, el("label", { for: "train-name" }, t("train.name")), el("input", { id: "train-name", maxlength: 40, placeholder: t("train.nameExample") }))),
      el("label.tick", {}, rehearse, t("train.rehearse")),
      el("div.actions", {},
        el("button.primary", { type: "submit" }, t("train.start")),
        el("button.chip.check", { type: "button", onclick: () => check(null) }, t("train.check"))));
    const check = (start) => {
      pendingStart = start;
      checking = true;
      buttons();
      $("preflight").replaceChildren(el("p.state", {}, el("span.pulse", { "aria-hidden": "true" }), t("train.reading")));
      vqa.send("train", request("check"));
    };
    $("train-form").onsubmit = (event) => {
      event.preventDefault();
      check(request("start"));
    };
  }

  vqa.on("preflight", (found) => {
    const words = t("train.counts", { rows: t("teach.rows", { count: found.rows }),
      answers: t("train.answers", { count: found.answers }), pictures: t("train.pictures", { count: found.pictures }) });
    const opened = found.opened < found.pictures ? ` ${t("train.opened", { count: found.opened })}` : "";
    const problems = found.problems.map((problem) => el("li", {}, vqa.message(problem)));
    const ready = pendingStart;
    pendingStart = null;
    checking = false;
    buttons();
    if (ready && !problems.length) vqa.send("train", ready);
    const without = ready && problems.length && found.rows
      ? el("button.chip", { onclick: () => {
          $("preflight").replaceChildren();
          vqa.send("train", { ...ready, skip: true });
        } }, t("train.skipBad"))
      : null;
    if (found.more_problems) problems.push(el("li", {}, t("train.moreProblems", { count: found.more_problems })));
    $("preflight").replaceChildren(
      el("div.panel", {},
        el("p", {}, el(`span.badge.${problems.length ? "some" : "well"}`, {}, t(problems.length ? "train.problems" : "train.allFine")), " ", words, opened),
        problems.length ? el("ul", {}, ...problems) : null, without));
  });

  const STATES = { running: "train.stateRunning", stopping: "train.stateStopping", comparing: "train.stateComparing", done: "train.stateDone", stopped: "train.stateStopped", failed: "train.stateFailed" };
  const PHASES = { drawing: "train.phaseDrawing", loading: "train.phaseLoading", checking: "train.phaseChecking", encoding: "train.phaseEncoding", training: "train.phaseTraining", evaluating: "train.phaseEvaluating", saving: "train.phaseSaving", comparing: "train.phaseComparing" };

  let drawn = "";
  function drawJob() {
    const now = JSON.stringify([job, vqa.state.models?.picked, switchingTo]);
    if (now === drawn) return;
    if ($("job").querySelector("button:active")) return void setTimeout(drawJob, 200); // a click is in progress
    drawn = now;
    if (!job) return void $("job").replaceChildren();
    const running = ["running", "stopping", "comparing"].includes(job.state);
    const share = job.of ? Math.min(1, job.done / job.of) : 0;
    const parts = [
      el("header.job-head", {}, el("h2", {}, job.name),
        el(`span.badge.${{ done: "well", failed: "not" }[job.state] || "some"}`, {}, t(STATES[job.state])),
        el("span.gap"),
        ["running", "comparing"].includes(job.state)
          ? el("button.chip", { onclick: () => vqa.send("train", { do: "stop" }) }, t(job.state === "running" ? "page.stop" : "train.skipComparison"))
          : null),
      el("p.note", {}, describe(job, running)),
    ];
    if (running) parts.push(el("div.track.wide", { role: "progressbar", "aria-label": t("train.progress"), "aria-valuenow": Math.round(share * 100), "aria-valuemin": 0, "aria-valuemax": 100 }, bar(share)));
    if (job.error) parts.push(el("p.failed", { role: "alert" }, vqa.message(job.text || job.error)));
    if (job.can_go_on) {
      parts.push(el("div.actions", {},
        el("button.primary", { onclick: () => vqa.send("train", { do: "go-on" }) }, t(job.state === "failed" ? "chat.tryAgain" : "train.continue")),
        el("span.note", {}, t("train.continueHint"))));
    }
    if (job.state === "done") parts.push(outcome());
    const charts = [];
    if (job.losses.length > 1) charts.push(chart(t("train.loss"), job.losses));
    const accuracy = job.evaluations.filter((one) => "vqa_accuracy" in one).map((one) => [one.step, one.vqa_accuracy * 100]);
    if (accuracy.length) charts.push(chart(t(job.curve), accuracy, [0, 100]));
    if (charts.length) parts.push(el("div.columns", {}, ...charts));
    if (job.state === "done" && job.comparison) parts.push(...comparisonRows(job.comparison));
    if (job.watch.length) {
      parts.push(el("h3", {}, t("train.watched")), el("ul.watch", {}, ...job.watch.map((one) =>
        el("li", {}, thumbs(one.pictures), question(one.question, one.expected), el("p", {}, ...joinAnswers(one.answers))))));
    }
    if (job.messages.length) {
      parts.push(el("details", { open: running }, el("summary", {}, t("train.messages")), el("ul.messages", {}, ...job.messages.map((text) => el("li", {}, vqa.message(text))))));
    }
    redraw(el("div.panel", {}, ...parts));
  }

  /** Says what trains, and how far it is. */
  function describe(job, running) {
    // The server trains models in 4 or 8 bits with QLoRA in place of LoRA.
    const stage = job.stage === "qlora" ? t("train.qlora") : STAGES.find(([value]) => value === job.stage)[1];
    if (!running) return t("train.stageOn", { stage, model: job.base });
    const parts = [
      `${t(PHASES[job.phase] || job.phase)} ${job.of ? t("train.progressOf", job) : ""}`.trim(),
      ...(job.seconds_left ? [t("train.left", { time: vqa.duration(job.seconds_left) })] : []),
    ];
    return t("train.stageOnPhase", { stage, model: job.base, phase: parts.join(", ") });
  }

  /** Replaces the panel; sections stay open or closed, and the focus is kept. */
  function redraw(panel) {
    const folds = () => [...$("job").querySelectorAll("details")];
    const was = new Map(folds().map((fold) => [fold.firstChild.innerText, fold.open]));
    vqa.redraw($("job"), () => {
      $("job").replaceChildren(panel);
      for (const fold of folds()) fold.open = was.get(fold.firstChild.innerText) ?? fold.open;
    });
  }

  function bar(share) {
    const fill = el("span.fill");
    fill.style.width = `${share * 100}%`;
    return fill;
  }

  /** Draws a small line chart; its caption says the same for screen readers. */
  function chart(title, points, range) {
    const [width, height, edge, left, foot] = [360, 150, 8, 40, 26];
    const steps = points.map(([step]) => step);
    const values = points.map(([, value]) => value);
    const [low, high] = range || [Math.min(...values), Math.max(...values)];
    const x = (step) => left + ((step - steps[0]) / Math.max(1, steps.at(-1) - steps[0])) * (width - left - edge);
    const y = (value) => height - foot - ((value - low) / Math.max(1e-9, high - low)) * (height - foot - edge);
    const NS = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    svg.classList.add("chart");
    const places = !range && high < 10 ? 2 : 0;
    const digits = (value) => vqa.number(value, { minimumFractionDigits: places, maximumFractionDigits: places });
    const label = (text, x, y, anchor) => {
      const node = document.createElementNS(NS, "text");
      node.setAttribute("x", x);
      node.setAttribute("y", y);
      node.setAttribute("text-anchor", anchor);
      node.textContent = text;
      svg.append(node);
    };
    label(digits(high), left - 6, edge + 8, "end");
    label(digits(low), left - 6, height - foot, "end");
    label(t("train.step", { number: steps[0] }), left, height - 7, "start");
    if (steps.length > 1) label(vqa.number(steps.at(-1)), width - edge, height - 7, "end");
    const line = document.createElementNS(NS, "polyline");
    line.setAttribute("points", points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
    svg.append(line);
    if (points.length < 40) {
      for (const [step, value] of points) {
        const dot = document.createElementNS(NS, "circle");
        dot.setAttribute("cx", x(step));
        dot.setAttribute("cy", y(value));
        dot.setAttribute("r", 2.5);
        svg.append(dot);
      }
    }
    return el("figure.plot", {}, el("figcaption", {}, el("b", {}, title), ` ${[...new Set([values[0], values.at(-1)].map(digits))].join(" → ")}`), svg);
  }

  const thumbs = (digests) =>
    el("div.pictures", {}, ...digests.map((digest, position) => vqa.thumb({ digest, name: t("page.picture"), number: position + 1 })));
  const question = (text, right, follows) =>
    el("div.texts", {}, el("p.asked", { dir: "auto" }, text),
      right ? el("p.note", {}, t("train.rightIs", { answer: right })) : null,
      follows ? el("p.note", {}, t("train.follows", follows)) : null);

  /** Joins the answers during training; repeated ones are shown once. */
  function joinAnswers(answers) {
    const said = answers.map((one) => one.answer).filter((text, place, all) => text !== all[place - 1]);
    return said.flatMap((text, place) => [place ? " → " : "", place === said.length - 1 ? el("b", {}, text) : text]);
  }

  function outcome() {
    const percent = (value) => (value === null ? "–" : vqa.percent(value));
    const line = (title, part) =>
      el("tr", {}, el("th", { scope: "row" }, t(part.of > part.rows.length ? "train.sampleOf" : "train.sample", { title, shown: part.rows.length, of: part.of })), el("td", {}, percent(part.before)), el("td", {}, percent(part.after)));
    const pick = el("div.actions", {},
      vqa.state.models?.picked === job.key
        ? el("button.chip", { onclick: usePrevious }, t("train.previousModel"))
        : el("button.primary", { disabled: switchingTo === job.key, onclick: useModel }, t(switchingTo === job.key ? "train.loading" : "train.use")),
      el("button.chip", { onclick: () => {
        $("train-form").scrollIntoView({ block: "start" });
        $("train-form").querySelector("input:enabled")?.focus({ preventScroll: true });
      } }, t("train.again")),
      job.report
        ? el("a.chip", { href: `vqa/runs/${encodeURIComponent(job.report)}/report.html`, target: "_blank" }, t("train.report"))
        : null);
    if (!job.comparison) return el("div.outcome", {}, el("p.note", {}, t("train.notCompared")), pick);
    const { taught, world } = job.comparison;
    return el("div.outcome", {},
      el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, t("train.rightAnswers")), el("th", {}, t("train.before")), el("th", {}, t("train.after")))),
        el("tbody", {}, line(t("train.taught"), taught), line(t("train.world"), world))),
      pick);
  }

  function comparisonRows({ taught, neighbours, world }) {
    const said = (when, score, answer) => el("p", {}, el("span.note", {}, `${when} `), score === undefined ? null : mark(score), el("span", { dir: "auto" }, answer));
    const rows = (part) => part.rows.map((row) =>
      el("li", {}, thumbs(row.pictures), question(row.question, row.right, row.follows),
        el("div.texts", {}, said(t("train.beforeAnswer"), row.scores?.[0], row.before), said(t("train.afterAnswer"), row.scores?.[1], row.after))));
    const fold = (title, part, open, hint = null) =>
      el("details", { open }, el("summary", {}, title), hint && el("p.note", {}, hint), el("ul.pairs", {}, ...rows(part)));
    return [fold(t("train.taughtPairs"), taught, true),
      neighbours?.rows.length ? fold(t("train.neighbourPairs"), neighbours, true, t("train.neighbourHint")) : null, // earlier versions did not ask them
      fold(t("train.worldPairs"), world, false)];
  }

  const mark = (score) => el(`span.mark.${score >= 0.5 ? "yes" : "no"}`, { "aria-label": t(score >= 0.5 ? "train.markRight" : "train.markWrong") }, score >= 0.5 ? "✓ " : "✗ ");
  const usePrevious = () => vqa.send("pick", { model: vqa.state.models.before || vqa.state.models.choices[0].key });
  function useModel() {
    if (switchingTo) return; // clicked twice
    switchingTo = job.key;
    drawJob();
    vqa.send("pick", { model: job.key });
  }

  let picked = null;
  vqa.on("models", (models, { channel }) => {
    if (switchingTo && channel === "pick" && !models.loading) {
      if (models.picked === switchingTo) vqa.toast(t("train.answersNow", { model: models.label }));
      switchingTo = null;
      drawJob();
    }
    if (models.picked !== picked && $("vqa").dataset.view === "train") refresh();
    picked = models.picked;
  });
  vqa.on("error", (_, { channel }) => {
    if (channel !== "pick") return;
    switchingTo = null;
    drawJob();
  });
})();
