// Copy buttons of the citation block, the button that trains, and names for controls whose visible text the theme does not match.
const here = document.currentScript.src;
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
  // Not even the script that trains is loaded before the button is pressed; it then takes the button over.
  for (const place of document.querySelectorAll(".live-small")) {
    const button = place.querySelector(".live-train"), says = place.querySelector("[role=status]");
    const press = () => {
      const script = document.createElement("script");
      script.src = new URL("live.js", here);
      script.addEventListener("load", () => button.removeEventListener("click", press));
      script.addEventListener("error", () => {
        script.remove();
        button.disabled = false;
        says.textContent = "Training did not start: the file live.js could not be loaded. Press again to try again.";
      });
      button.disabled = true;
      says.textContent = "Loading.";
      document.head.append(script);
    };
    button.addEventListener("click", press);
  }
  // The accessible name must contain the visible text (WCAG 2.5.3).
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }
  for (const summary of document.querySelectorAll("details.hide summary")) {
    summary.removeAttribute("aria-label");
  }
});
