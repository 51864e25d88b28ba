// Copy buttons of the citation block, and names for controls whose visible text the theme does not match.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll(".copy-citation")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      const answer = button.parentElement.querySelector(".copy-answer");
      try {
        await navigator.clipboard.writeText(source.textContent.trim());
        answer.textContent = "Copied.";
      } catch {
        const range = document.createRange();
        range.selectNodeContents(source);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        answer.textContent = "Selected: press Ctrl+C.";
      }
    });
  }
  // The accessible name must contain the visible text (WCAG 2.5.3).
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }
  for (const summary of document.querySelectorAll("details.hide summary")) {
    summary.removeAttribute("aria-label");
  }
});
