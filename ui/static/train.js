// Training: choose and check data, follow the run, use the trained model.
"use strict";
(() => {
  const { $, el } = vqa;
  let timer = null;
  let sources = null;
  let checking = false; // the chosen data is being checked
  let pendingStart = null; // the start request that waits for the check
  let busy = false;
  let byOther = false; // whether the running training is another owner's
  let wasRunning = false;
  let job = null;
  let switchingTo = null; // key of the run that is loading to answer in the chat

  const refresh = () => vqa.send("train", { do: "status" });
  vqa.on("shown", (name) => name === "train" && refresh());
  vqa.on("hello", refresh);

  vqa.on("training", (training) => {
    $("train-base").textContent = training.base;
    if (!sources) drawForm();
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
    if (wasRunning && !isRunning && job && !watched) vqa.toast(`${job.name} ${ENDS[job.state]}`, job.state === "failed" ? "error" : "plain");
    if (isRunning && !wasRunning && watched) $("job").scrollIntoView({ block: "nearest" });
    wasRunning = isRunning;
    $("fine").textContent = training.busy
      ? `${byOther ? "Someone else's training" : "Training"} is in progress: answers are slower until it ends.`
      : "Answers can be wrong. Check for yourself.";
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
  const ENDS = { done: "has finished training: see Train for the results.", stopped: "was stopped: see Train to continue.", failed: "failed: see Train for the reason." };

  function buttons() {
    const start = $("train-form").querySelector("[type=submit]");
    start.disabled = busy || checking;
    start.textContent = busy ? (byOther ? "Someone else is training: yours can start afterwards" : "Training in progress") : "Start training";
    $("train-form").querySelector(".check").disabled = checking;
  }

  const STAGES = [
    ["lora", "LoRA and projector", "Learns well; the usual choice."],
    ["projector", "Projector only", "Quick; changes only how pictures are mapped to tokens."],
    ["full", "Whole language model", "Strongest and slowest; forgets most."],
  ];

  /** Draws the data sets; ticks are kept, and newly uploaded ones are ticked. */
  function drawSources(list) {
    const known = new Map([...$("train-form").querySelectorAll("[name=source]:enabled")].map((box) => [box.value, box.checked]));
    $("train-sources").replaceChildren(...list.map((source) => {
      const box = el("input", { type: "checkbox", name: "source", value: source.key, disabled: source.empty });
      const added = source.key === "mine" || (sources && source.key.startsWith("upload:"));
      box.checked = !source.empty && (known.get(source.key) ?? Boolean(added));
      return el("label.tick", {}, box, source.label);
    }));
  }

  function drawForm() {
    const stage = el("select", { id: "train-stage" }, ...STAGES.map(([value, label]) => el("option", { value }, label)));
    const hint = el("small", {}, STAGES[0][2]);
    stage.addEventListener("change", () => (hint.textContent = STAGES.find(([value]) => value === stage.value)[2]));
    const number = (id, label, hintText, attributes) =>
      el("div.field", {}, el("label", { for: id }, label), el("input", { id, type: "number", ...attributes }), el("small", {}, hintText));
    const rehearse = el("input", { type: "checkbox", id: "train-rehearse" });
    rehearse.checked = true;
    const file = el("input", { type: "file", accept: ".zip,.csv,.tsv,.json,.jsonl", hidden: true, "aria-label": "File with a data set" });
    file.addEventListener("change", async () => {
      const [chosen] = file.files;
      const found = chosen && (await vqa.upload(`vqa/datasets?name=${encodeURIComponent(chosen.name)}`, chosen));
      if (found) refresh();
      if (found?.replaced) vqa.toast("Replaced the data set of the same name.");
      file.value = "";
    });
    const chosen = () => [...$("train-form").querySelectorAll("[name=source]:checked")].map((box) => box.value);
    const valueOf = (id) => ($(id).value === "" ? null : Number($(id).value));
    const request = (action) => ({
      do: action, sources: chosen(), stage: stage.value, epochs: valueOf("train-epochs"), lr: valueOf("train-lr"),
      name: $("train-name").value, rehearse: rehearse.checked,
    });
    $("train-form").replaceChildren(
      el("fieldset", {}, el("legend", {}, "Data"), el("div", { id: "train-sources" }),
        el("button.link", { type: "button", onclick: () => file.click() }, "Upload a data set (zip, CSV or JSON)"), file),
      el("div.columns", {},
        el("div.field", {}, el("label", { for: "train-stage" }, "What trains"), stage, hint),
        number("train-epochs", "Passes over the data", "If empty, chosen to suit the data.", { min: 0.1, max: 200, step: "any" }),
        number("train-lr", "Learning rate", "If empty, chosen to suit the model.", { min: 0, max: 1, step: "any" }),
        el("div.field", {}, el("label", { for: "train-name" }, "Name"), el("input", { id: "train-name", maxlength: 40, placeholder: "date and time" }))),
      el("label.tick", {}, rehearse, "Rehearse its original training data, so that it forgets less"),
      el("div.actions", {},
        el("button.primary", { type: "submit" }, "Start training"),
        el("button.chip.check", { type: "button", onclick: () => check(null) }, "Check the data first")));
    const check = (start) => {
      pendingStart = start;
      checking = true;
      buttons();
      $("preflight").replaceChildren(el("p.state", {}, el("span.pulse", { "aria-hidden": "true" }), "Reading the data …"));
      vqa.send("train", request("check"));
    };
    $("train-form").onsubmit = (event) => {
      event.preventDefault();
      check(request("start"));
    };
  }

  vqa.on("preflight", (found) => {
    const words = `${found.rows.toLocaleString()} rows, ${found.answers.toLocaleString()} answers, ${found.pictures.toLocaleString()} pictures.`;
    const opened = found.opened < found.pictures ? ` Only the first ${found.opened.toLocaleString()} pictures were opened.` : "";
    const problems = found.problems.map((problem) => el("li", {}, problem));
    const ready = pendingStart;
    pendingStart = null;
    checking = false;
    buttons();
    if (ready && !problems.length) vqa.send("train", ready);
    const without = ready && problems.length && found.rows
      ? el("button.chip", { onclick: () => {
          $("preflight").replaceChildren();
          vqa.send("train", { ...ready, skip: true });
        } }, "Train without the bad rows")
      : null;
    if (found.more_problems) problems.push(el("li", {}, `and ${found.more_problems.toLocaleString()} more`));
    $("preflight").replaceChildren(
      el("div.panel", {},
        el("p", {}, el(`span.badge.${problems.length ? "some" : "well"}`, {}, problems.length ? "Problems" : "All fine"), " ", words, opened),
        problems.length ? el("ul", {}, ...problems) : null, without));
  });

  const STATES = { running: "Training", stopping: "Stopping", comparing: "Comparing before and after", done: "Done", stopped: "Stopped", failed: "Failed" };
  const PHASES = { drawing: "drawing pictures for rehearsal", loading: "loading the model", checking: "checking the data", encoding: "encoding the pictures", training: "training", evaluating: "evaluating", saving: "saving", comparing: "asking both models the same questions" };

  let drawn = "";
  function drawJob() {
    const now = JSON.stringify([job, vqa.state.models?.picked, switchingTo]);
    if (now === drawn) return;
    if ($("job").querySelector("button:active")) return void setTimeout(drawJob, 200); // a click is in progress
    drawn = now;
    if (!job) return void $("job").replaceChildren();
    const running = ["running", "stopping", "comparing"].includes(job.state);
    const share = job.of ? Math.min(1, job.done / job.of) : 0;
    const left = job.seconds_left ? `, about ${clock(job.seconds_left)} left` : "";
    const parts = [
      el("header.job-head", {}, el("h2", {}, job.name),
        el(`span.badge.${{ done: "well", failed: "not" }[job.state] || "some"}`, {}, STATES[job.state]),
        el("span.gap"),
        ["running", "comparing"].includes(job.state)
          ? el("button.chip", { onclick: () => vqa.send("train", { do: "stop" }) }, job.state === "running" ? "Stop" : "Skip the comparison")
          : null),
      el("p.note", {}, `${STAGES.find(([value]) => value === job.stage)?.[1] || job.stage} on ${job.base}` + (running ? `: ${PHASES[job.phase] || job.phase}${job.of ? ` ${job.done.toLocaleString()} of ${job.of.toLocaleString()}` : ""}${left}` : "")),
    ];
    if (running) parts.push(el("div.track.wide", { role: "progressbar", "aria-label": "Progress", "aria-valuenow": Math.round(share * 100), "aria-valuemin": 0, "aria-valuemax": 100 }, bar(share)));
    if (job.error) parts.push(el("p.failed", { role: "alert" }, job.error));
    if (job.can_go_on) {
      parts.push(el("div.actions", {},
        el("button.primary", { onclick: () => vqa.send("train", { do: "go-on" }) }, job.state === "failed" ? "Try again" : "Continue"),
        el("span.note", {}, "With the same settings, from the last checkpoint.")));
    }
    if (job.state === "done") parts.push(outcome());
    const charts = [];
    if (job.losses.length > 1) charts.push(chart("Loss", job.losses));
    const accuracy = job.evaluations.filter((one) => "vqa_accuracy" in one).map((one) => [one.step, one.vqa_accuracy * 100]);
    if (accuracy.length) charts.push(chart(job.curve, accuracy, [0, 100]));
    if (charts.length) parts.push(el("div.columns", {}, ...charts));
    if (job.state === "done" && job.comparison) parts.push(...comparisonRows(job.comparison));
    if (job.watch.length) {
      parts.push(el("h3", {}, "Watched questions"), el("ul.watch", {}, ...job.watch.map((one) =>
        el("li", {}, thumbs(one.pictures), question(one.question, one.expected), el("p", {}, ...joinAnswers(one.answers))))));
    }
    if (job.messages.length) {
      parts.push(el("details", { open: running }, el("summary", {}, "Messages"), el("ul.messages", {}, ...job.messages.map((text) => el("li", {}, text)))));
    }
    redraw(el("div.panel", {}, ...parts));
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

  const clock = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

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
    const digits = (value) => value.toFixed(range ? 0 : high < 10 ? 2 : 0);
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
    label(`step ${steps[0].toLocaleString()}`, left, height - 7, "start");
    if (steps.length > 1) label(steps.at(-1).toLocaleString(), width - edge, height - 7, "end");
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
    el("div.pictures", {}, ...digests.map((digest, position) => vqa.thumb({ digest, name: "picture", number: position + 1 })));
  const question = (text, right) =>
    el("div.texts", {}, el("p.asked", {}, text), right ? el("p.note", {}, `right: ${right}`) : null);

  /** Joins the answers during training; repeated ones are shown once. */
  function joinAnswers(answers) {
    const said = answers.map((one) => one.answer).filter((text, place, all) => text !== all[place - 1]);
    return said.flatMap((text, place) => [place ? " → " : "", place === said.length - 1 ? el("b", {}, text) : text]);
  }

  function outcome() {
    const percent = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);
    const line = (title, part) =>
      el("tr", {}, el("th", { scope: "row" }, `${title} (${part.rows.length}${part.of > part.rows.length ? ` of ${part.of.toLocaleString()}` : ""})`), el("td", {}, percent(part.before)), el("td", {}, percent(part.after)));
    const pick = el("div.actions", {},
      vqa.state.models?.picked === job.key
        ? el("button.chip", { onclick: usePrevious }, "Go back to the previous model")
        : el("button.primary", { disabled: switchingTo === job.key, onclick: useModel }, switchingTo === job.key ? "Loading …" : "Use it in chat"),
      el("button.chip", { onclick: () => {
        $("train-form").scrollIntoView({ block: "start" });
        $("train-form").querySelector("input:enabled")?.focus({ preventScroll: true });
      } }, "Train again"));
    if (!job.comparison) return el("div.outcome", {}, el("p.note", {}, "Before and after were not compared."), pick);
    const { taught, world } = job.comparison;
    return el("div.outcome", {},
      el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Right answers"), el("th", {}, "Before"), el("th", {}, "After"))),
        el("tbody", {}, line("Taught questions", taught), line("Original training data, held out", world))),
      pick);
  }

  function comparisonRows({ taught, world }) {
    const said = (when, score, answer) => el("p", {}, el("span.note", {}, when), mark(score), answer);
    const rows = (part) => part.rows.map((row) =>
      el("li", {}, thumbs(row.pictures), question(row.question, row.right),
        el("div.texts", {}, said("before ", row.scores[0], row.before), said("after ", row.scores[1], row.after))));
    const fold = (title, part, open) =>
      el("details", { open }, el("summary", {}, title), el("ul.pairs", {}, ...rows(part)));
    return [fold("Taught questions, before and after", taught, true), fold("Original training data, before and after", world, false)];
  }

  const mark = (score) => el(`span.mark.${score >= 0.5 ? "yes" : "no"}`, { "aria-label": score >= 0.5 ? "right" : "wrong" }, score >= 0.5 ? "✓ " : "✗ ");
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
      if (models.picked === switchingTo) vqa.toast(`${models.label} answers from now on.`);
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
