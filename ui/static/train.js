// Training from the page: choose, check, watch, and use what came out.
"use strict";
(() => {
  const { $, el, icon } = vqa;
  let timer = null;
  let sources = "";
  let asked = null; // a start that waits for the check of its data
  let ran = false;

  const look = () => vqa.send("train", { do: "status" });
  vqa.on("shown", (name) => name === "train" && look());
  vqa.on("hello", look);

  vqa.on("training", (training) => {
    $("train-base").textContent = training.base;
    const key = JSON.stringify(training.sources);
    if (key !== sources) {
      sources = key;
      drawForm(training.sources);
    }
    const start = $("train-form").querySelector("[type=submit]");
    start.disabled = training.busy;
    start.textContent = training.busy ? "Training runs" : "Start training";
    drawJob(training.job);
    const watched = $("vqa").dataset.view === "train";
    if (ran && training.job?.state === "done" && !watched) {
      vqa.toast(`${training.job.name} is trained: see Train for what it learned.`);
    }
    ran = Boolean(training.job) && training.busy;
    $("fine").textContent = training.busy
      ? "A training runs: answers come slower until it ends."
      : "Answers can be wrong. Look for yourself.";
    clearTimeout(timer);
    if (training.busy) timer = setTimeout(look, watched ? 1000 : 4000);
  });
  vqa.on("error", (_, { wire }) => {
    if (wire === "train") asked = null;
  });

  const STAGES = [
    ["lora", "LoRA and projector", "Learns most; the usual choice."],
    ["projector", "Projector only", "Gentle and quick: how pictures are put into words."],
    ["full", "Whole language model", "Strongest, slowest, forgets most."],
  ];

  function drawForm(list) {
    const boxes = list.map((source) => {
      const box = el("input", { type: "checkbox", name: "source", value: source.key, disabled: source.empty });
      box.checked = source.key === "mine" && !source.empty;
      return el("label.tick", {}, box, source.label);
    });
    const stage = el("select", { id: "train-stage" }, ...STAGES.map(([value, label]) => el("option", { value }, label)));
    const hint = el("small", {}, STAGES[0][2]);
    stage.addEventListener("change", () => (hint.textContent = STAGES.find(([value]) => value === stage.value)[2]));
    const number = (id, label, hintText, attributes) =>
      el("div.field", {}, el("label", { for: id }, label), el("input", { id, type: "number", ...attributes }), el("small", {}, hintText));
    const rehearse = el("input", { type: "checkbox", id: "train-rehearse" });
    rehearse.checked = true;
    const file = el("input", { type: "file", accept: ".zip,application/zip", hidden: true, "aria-label": "Zip file with a data set" });
    file.addEventListener("change", async () => {
      const [chosen] = file.files;
      file.value = "";
      const answer = await fetch(`vqa/datasets?name=${encodeURIComponent(chosen.name)}`, { method: "POST", body: chosen });
      const found = await answer.json().catch(() => ({}));
      if (!answer.ok) return vqa.toast(found.error || "The file could not be read.", "error");
      vqa.send("train", { do: "status" });
    });
    const chosen = () => [...$("train-form").querySelectorAll("[name=source]:checked")].map((box) => box.value);
    const valueOf = (id) => ($(id).value === "" ? null : Number($(id).value));
    const request = (deed) => ({
      do: deed, sources: chosen(), stage: stage.value, epochs: valueOf("train-epochs"), lr: valueOf("train-lr"),
      name: $("train-name").value, rehearse: rehearse.checked,
    });
    $("train-form").replaceChildren(
      el("fieldset", {}, el("legend", {}, "Data"), ...boxes,
        el("button.link", { type: "button", onclick: () => file.click() }, "Upload a zip file with a data set"), file),
      el("div.columns", {},
        el("div.field", {}, el("label", { for: "train-stage" }, "What trains"), stage, hint),
        number("train-epochs", "Passes over the data", "Left empty: decided from the data.", { min: 0.1, max: 200, step: "any" }),
        number("train-lr", "Learning rate", "Left empty: decided from the model.", { min: 0, max: 1, step: "any" }),
        el("div.field", {}, el("label", { for: "train-name" }, "Name"), el("input", { id: "train-name", maxlength: 40, placeholder: "date and time" }))),
      el("label.tick", {}, rehearse, "Mix in pictures of its own world, so that it forgets less"),
      el("div.actions", {},
        el("button.primary", { type: "submit" }, "Start training"),
        el("button.chip", { type: "button", onclick: () => vqa.send("train", request("check")) }, "Check the data first")));
    $("train-form").onsubmit = (event) => {
      event.preventDefault();
      asked = request("start");
      vqa.send("train", { ...asked, do: "check" });
    };
  }

  vqa.on("preflight", (found) => {
    const words = `${found.rows.toLocaleString()} rows, ${found.answers.toLocaleString()} answers, ${found.pictures.toLocaleString()} pictures.`;
    const problems = found.problems.map((problem) => el("li", {}, problem));
    const ready = asked;
    asked = null;
    if (ready && !problems.length) vqa.send("train", ready);
    const without = ready && problems.length && found.rows
      ? el("button.chip", { onclick: () => vqa.send("train", { ...ready, skip: true }) }, "Train without what has problems")
      : null;
    if (found.more_problems) problems.push(el("li", {}, `and ${found.more_problems.toLocaleString()} more`));
    $("preflight").replaceChildren(
      el("div.panel", {},
        el("p", {}, el(`span.badge.${problems.length ? "some" : "well"}`, {}, problems.length ? "Problems" : "All fine"), " ", words),
        problems.length ? el("ul", {}, ...problems) : null, without));
  });

  const STATES = { running: "Training", stopping: "Stopping after this step", comparing: "Comparing before and after", done: "Done", stopped: "Stopped", failed: "Failed" };
  const PHASES = { loading: "loading the model", checking: "checking the data", encoding: "looking at all pictures once", training: "training", evaluating: "asking questions", saving: "saving", comparing: "asking both models" };

  function drawJob(job) {
    if (!job) return void $("job").replaceChildren();
    const running = ["running", "stopping", "comparing"].includes(job.state);
    const share = job.of ? Math.min(1, job.done / job.of) : 0;
    const left = job.seconds_left ? `, about ${clock(job.seconds_left)} left` : "";
    const parts = [
      el("header.job-head", {}, el("h2", {}, job.name),
        el(`span.badge.${{ done: "well", failed: "not" }[job.state] || "some"}`, {}, STATES[job.state]),
        el("span.gap"),
        job.state === "running" ? el("button.chip", { onclick: () => vqa.send("train", { do: "stop" }) }, "Stop") : null),
      el("p.note", {}, `${STAGES.find(([value]) => value === job.stage)?.[1] || job.stage} on ${job.base}` + (running ? `: ${PHASES[job.phase] || job.phase}${job.of ? ` ${job.done.toLocaleString()} of ${job.of.toLocaleString()}` : ""}${left}` : "")),
    ];
    if (running) parts.push(el("div.track.wide", { role: "progressbar", "aria-label": "Progress", "aria-valuenow": Math.round(share * 100), "aria-valuemin": 0, "aria-valuemax": 100 }, bar(share)));
    if (job.state === "stopped") parts.push(el("p.note", {}, `Start again with the name ${job.name} and the same choices to go on.`));
    if (job.error) parts.push(el("p.failed", { role: "alert" }, job.error));
    const charts = [];
    if (job.losses.length > 1) charts.push(chart("Loss", job.losses));
    const accuracy = job.evaluations.filter((one) => "vqa_accuracy" in one).map((one) => [one.step, one.vqa_accuracy * 100]);
    if (accuracy.length) charts.push(chart(job.curve, accuracy, [0, 100]));
    if (charts.length) parts.push(el("div.columns", {}, ...charts));
    if (job.watch.length) {
      parts.push(el("h3", {}, "Watched questions"),
        el("ul.watch", {}, ...job.watch.map((one) =>
          el("li", {}, el("span", {}, one.question), el("b", {}, one.answers.at(-1).answer),
            one.expected ? el("span.note", {}, `right: ${one.expected}`) : null))));
    }
    if (job.state === "done") parts.push(outcome(job));
    if (job.messages.length) {
      parts.push(el("details", {}, el("summary", {}, "What it told"), el("ul.told", {}, ...job.messages.map((text) => el("li", {}, text)))));
    }
    redraw(el("div.panel", {}, ...parts));
  }

  /** Puts the panel in; what was opened or closed stays so, and the focus stays where it was. */
  function redraw(panel) {
    const folds = () => [...$("job").querySelectorAll("details")];
    const was = new Map(folds().map((fold) => [fold.firstChild.innerText, fold.open]));
    const focused = $("job").contains(document.activeElement) && document.activeElement.innerText;
    $("job").replaceChildren(panel);
    for (const fold of folds()) fold.open = was.get(fold.firstChild.innerText) ?? fold.open;
    if (focused) [...$("job").querySelectorAll("button, summary")].find((one) => one.innerText === focused)?.focus();
  }

  function bar(share) {
    const fill = el("span.fill");
    fill.style.width = `${share * 100}%`;
    return fill;
  }

  const clock = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

  /** A small line chart; the words beside it say the same for who cannot see it. */
  function chart(title, points, range) {
    const [width, height, edge] = [360, 130, 6];
    const steps = points.map(([step]) => step);
    const values = points.map(([, value]) => value);
    const [low, high] = range || [Math.min(...values), Math.max(...values)];
    const x = (step) => edge + ((step - steps[0]) / Math.max(1, steps.at(-1) - steps[0])) * (width - 2 * edge);
    const y = (value) => height - edge - ((value - low) / Math.max(1e-9, high - low)) * (height - 2 * edge);
    const NS = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-hidden", "true");
    svg.classList.add("chart");
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
    const digits = (value) => value.toFixed(range ? 0 : 3);
    return el("figure.plot", {}, el("figcaption", {}, el("b", {}, title), ` ${digits(values[0])} → ${digits(values.at(-1))}`), svg);
  }

  function outcome(job) {
    const { taught, world } = job.comparison;
    const percent = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);
    const line = (title, part) =>
      el("tr", {}, el("th", { scope: "row" }, `${title} (${part.rows.length})`), el("td", {}, percent(part.before)), el("td", {}, percent(part.after)));
    const rows = (part) => part.rows.map((row) =>
      el("li", {},
        el("div.pictures", {}, ...row.pictures.map((digest, position) => vqa.thumb({ digest, name: "picture", number: position + 1 }))),
        el("div.texts", {}, el("p.asked", {}, row.question), el("p.note", {}, `right: ${row.right}`)),
        el("div.texts", {}, el("p", {}, mark(row.scores[0]), row.before), el("p", {}, mark(row.scores[1]), row.after))));
    const using = vqa.state.models?.picked === job.key;
    return el("div.outcome", {},
      el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Right answers"), el("th", {}, "Before"), el("th", {}, "After"))),
        el("tbody", {}, line("Taught rows", taught), line("Its own world, held out", world))),
      el("div.actions", {},
        using
          ? el("button.chip", { onclick: () => back() }, "Go back to the model before")
          : el("button.primary", { onclick: () => { vqa.send("pick", { model: job.key }); vqa.toast(`${job.name} answers from now on.`); } }, "Use it in chat")),
      el("details", { open: true }, el("summary", {}, "Taught rows, before and after"), el("ul.pairs", {}, ...rows(taught))),
      el("details", {}, el("summary", {}, "Its own world, before and after"), el("ul.pairs", {}, ...rows(world))));
  }

  const mark = (score) => el(`span.mark.${score >= 0.5 ? "yes" : "no"}`, { "aria-label": score >= 0.5 ? "right" : "wrong" }, score >= 0.5 ? "✓ " : "✗ ");
  const back = () => vqa.send("pick", { model: vqa.state.models.before || vqa.state.models.choices[0].key });

  vqa.on("models", () => {
    if ($("vqa").dataset.view === "train") vqa.send("train", { do: "status" });
  });
})();
