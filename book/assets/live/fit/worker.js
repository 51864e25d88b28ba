// @ts-check
// A question to the byte model and its answer, in a worker of the page or in Node. The script before this one has made
// `answer_fields`, `Question` and `InputError` of the package's own code; see `peftbook.views.site.byte_model`.
/* global py, model, given */

/**
 * What `peftbook fit` answers, or the sentence in which it refuses.
 * @param {Record<string, any>} question options by their names; those that are null are not given
 * @param {string} text of a config.json, which the question's model is where it says so
 * @returns {{ answer: any } | { refused: string }}
 */
function ask(question, text) {
  given.settings_text = (/** @type {string} */ source) => (source === "config.json" ? [source, text] : null);
  const asked = Object.fromEntries(Object.entries(question).filter(([, value]) => value !== null));
  try {
    return { answer: py.plain(model.answer_fields(py.kw(model.Question, [], asked))) };
  } catch (error) {
    if (py.isinstance(error, model.InputError)) return { refused: error.message };
    return { refused: `These settings make no sense to the byte model (${error.message}): give the config.json of a model.` };
  }
}

if (typeof importScripts === "function") {
  onmessage = ({ data: { id, question, text } }) => postMessage({ id, ...ask(question, text) });
}
