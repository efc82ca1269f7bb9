// Keeps the tabs of one browser in step.
"use strict";
(() => {
  const tabs = new BroadcastChannel("vqa");

  vqa.on("view", (_, { channel }) => channel !== "tabs" && tabs.postMessage("changed"));
  vqa.on("list", (_, { channel, view, refreshed }) => channel === "act" && !view && !refreshed && tabs.postMessage("changed"));
  tabs.addEventListener("message", refresh);
  // The chat may have been changed on another device, which sends no message here.
  document.addEventListener("visibilitychange", () => document.hidden || refresh());

  function refresh() {
    if (vqa.state.view && !vqa.state.asking) {
      vqa.send("act", { do: "refresh", conversation: vqa.state.view.conversation });
    }
  }
  vqa.on("refreshed", (view) => {
    const here = vqa.state.view.conversation === view.conversation;
    if (here && !vqa.state.asking) vqa.emit("view", view, { channel: "tabs" });
  });
})();
