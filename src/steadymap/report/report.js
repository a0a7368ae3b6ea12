// Opens what a link leads into: browsers do so for what is inside a fold, not for the fold itself.
(() => {
  const folds = () => document.querySelectorAll("details.part");
  function reveal() {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!place) return;
    const own = place.querySelector(":scope > details.part");
    for (let at = own || place; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
    }
    place.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.getAttribute("href") === location.hash) reveal();
  });
  let printed = [];
  window.addEventListener("beforeprint", () => {
    printed = [...folds()].filter((one) => !one.open);
    for (const one of printed) one.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const one of printed) one.open = false;
  });
  reveal();
})();
