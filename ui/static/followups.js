// Questions that may follow the latest answer.
"use strict";
(() => {
  const { $, el, t } = vqa;
  const MOST = 3;

  /** Draws the suggestions below the conversation; none while an answer is being written. */
  vqa.drawFollowups = () => {
    const { view, asking } = vqa.state;
    const asked = new Set(view.turns.map((turn) => turn.question));
    const questions = asking || view.busy ? [] : (view.followups || []).map(vqa.message).filter((text) => !asked.has(text));
    const ask = (question) => () => {
      vqa.ask({ question, pictures: [] }, { question, pictures: [] });
      vqa.focusView();
    };
    $("followups").hidden = !questions.length;
    vqa.redraw($("followups"), () => $("followups").replaceChildren(
      ...questions.slice(0, MOST).map((question) => el("button.chip", { onclick: ask(question) }, question))));
  };
})();
