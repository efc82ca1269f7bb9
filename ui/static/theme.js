// Sets the theme before the first paint: the one chosen on this page, or the system's.
"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    let chosen = null;
    try {
      chosen = localStorage.getItem("vqa-theme");
    } catch {
      // The browser blocks storage.
    }
    document.body.classList.toggle("dark", chosen ? chosen === "dark" : dark.matches);
  };
  dark.addEventListener("change", paint);
  paint();
})();
