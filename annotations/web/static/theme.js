// Light or dark as the system says, unless the person chose; the choice stays in this browser.
const stored = localStorage.getItem("beyond-theme");
if (stored) document.documentElement.dataset.theme = stored;
addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("[data-theme-switch]")) {
    button.addEventListener("click", () => {
      const root = document.documentElement;
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
      localStorage.setItem("beyond-theme", root.dataset.theme);
    });
  }
});
