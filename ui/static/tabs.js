// Other tabs: what is asked or changed in one is seen in all.
"use strict";
(() => {
  const tabs = new BroadcastChannel("vqa");

  vqa.on("view", (_, { wire }) => wire !== "tabs" && tabs.postMessage("changed"));
  vqa.on("list", (_, { wire, view, refreshed }) => wire === "act" && !view && !refreshed && tabs.postMessage("changed"));
  tabs.addEventListener("message", refresh);
  // Somebody may have gone on elsewhere, where no message comes from.
  document.addEventListener("visibilitychange", () => document.hidden || refresh());

  function refresh() {
    if (vqa.state.view && !vqa.state.asking) {
      vqa.send("act", { do: "refresh", conversation: vqa.state.view.conversation });
    }
  }
  vqa.on("refreshed", (view) => {
    const here = vqa.state.view.conversation === view.conversation;
    if (here && !vqa.state.asking) vqa.emit("view", view, { wire: "tabs" });
  });
})();
