// The texts of the page in its language. The server puts this language's catalogue, TEXTS, and the
// names of all LANGUAGES before the scripts; see ui/texts.py.
"use strict";
(() => {
  const language = document.documentElement.lang;
  const main = (tag) => tag.split("-")[0];
  // Numbers and dates as in the reader's region, if the page is in the browser's language.
  const locale = navigator.languages.find((tag) => main(tag) === main(language)) || language;
  const plurals = new Intl.PluralRules(locale);

  /** Returns a text with its values; `count` chooses between singular and plural. */
  vqa.t = (key, values = {}) => {
    const text = TEXTS[key] ?? key;
    const form = typeof text === "string" ? text : (text[plurals.select(values.count)] ?? text.other);
    return form.replace(/\{(\w+)\}/g, (_, name) => vqa.message(values[name]));
  };
  /** Returns a message of the server: a text, a number, {key, values} of the catalogue, {bytes}, {share}, or a list of these. */
  vqa.message = (message) => {
    if (typeof message === "number") return vqa.number(message);
    if (message?.bytes !== undefined) return vqa.bytes(message.bytes);
    if (message?.share !== undefined) return vqa.number(message.share, { style: "percent", maximumFractionDigits: 1 });
    if (!Array.isArray(message)) return message?.key ? vqa.t(message.key, message.values) : message;
    return message.map(vqa.message).join(" ").replace(/([。！？]) /g, "$1");
  };
  const SMALL = { maximumSignificantDigits: 3 }; // 0.00046 would be 0 with three decimals
  vqa.number = (value, options = Math.abs(value) < 0.1 ? SMALL : {}) => value.toLocaleString(locale, options);
  vqa.percent = (share) => vqa.number(share, { style: "percent", maximumFractionDigits: 0 });
  /** Returns what the confidence of an answer says: how likely it is right, or how sure the model is of its words. */
  vqa.confidence = ({ confidence, calibrated }) =>
    vqa.t(calibrated ? "page.likelyRight" : "page.sureOfWords", { share: vqa.percent(Math.min(0.99, confidence)) });
  vqa.bytes = (bytes) => {
    const sizes = [[1e3, "kilobyte"], [1e6, "megabyte"], [1e9, "gigabyte"]];
    const [one, unit] = sizes.findLast(([size]) => bytes >= size) || sizes[0];
    const value = Math.max(1, bytes / one);
    return vqa.number(value, { style: "unit", unit, maximumFractionDigits: value < 10 || one === 1e9 ? 1 : 0 });
  };
  vqa.duration = (seconds) => {
    const [value, unit] = seconds < 90 ? [seconds, "second"] : [seconds / 60, "minute"];
    return vqa.number(Math.round(value), { style: "unit", unit });
  };
  vqa.locale = locale;

  const COOKIE = "vqa-language";
  vqa.language = {
    names: LANGUAGES,
    isEnglish: main(language) === "en",
    /** The language that was chosen on this page; "" is the browser's. */
    chosen: document.cookie.match(`(?:^|; )${COOKIE}=([\\w-]+)`)?.[1] ?? "",
    choose(tag) {
      const age = tag ? 31536000 : 0;
      document.cookie = `${COOKIE}=${tag}; path=${location.pathname}; max-age=${age}; samesite=lax`;
      location.reload();
    },
  };
})();
