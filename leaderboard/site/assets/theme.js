/* A name for the theme's search dialog, which has none of its own. */
for (const box of document.querySelectorAll(".md-search[role=dialog]:not([aria-label])")) box.setAttribute("aria-label", "Search");
