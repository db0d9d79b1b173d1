// Colours

/** A colour of the style sheet, as [red, green, blue]. */
function cssColour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

let ramps = readRamps();
let palette = makePalette();  // the colours above zero in 256 steps, opaque: a million pixels look theirs up

function readRamps() {
  const [zero, more, most, less, least] = ["--heat-0", "--heat-1", "--heat-2", "--less-1", "--less-2"].map(cssColour);
  return { above: [zero, more, most], below: [zero, less, least] };
}

function makePalette() {
  return Array.from({ length: 256 }, (_, i) => [...colour(i / 255), 255]);
}

/** The colour of a fraction from -1 over 0 (nothing) to 1. */
function colour(fraction) {
  const ramp = fraction < 0 ? ramps.below : ramps.above;
  const place = Math.min(Math.abs(fraction), 1) * 2;
  const step = Math.min(Math.floor(place), 1);
  return ramp[step].map((from, i) => Math.round(from + (place - step) * (ramp[step + 1][i] - from)));
}

/** Black or white, whichever is easier to read on this colour. */
function textColour(rgb) {
  const [red, green, blue] = rgb.map((c) => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000" : "#fff";
}

function css(rgb) {
  return `rgb(${rgb.join(" ")})`;
}

function shade(cell, fraction) {
  cell.dataset.shade = fraction;
  cell.style.background = css(colour(fraction));
  cell.style.color = textColour(colour(fraction));
}

/** Probabilities are coloured by their square root, which tells small ones apart; the legend says so. */
function probabilityFraction(probability) {
  return Math.sqrt(probability);
}

/** A scale with marks: [[fraction, text], ...], from `from` (0, or -1 where there is less than nothing) to 1. */
function legend(figure, title, marks, from = 0) {
  const canvas = make("canvas", { width: 256, height: 1, "aria-hidden": true });
  const scale = make("div", { class: "scale" }, canvas);
  for (const [fraction, text] of marks) {
    const mark = make("span", {}, text);
    mark.style.left = `${100 * (fraction - from) / (1 - from)}%`;
    scale.append(mark);
  }
  const draw = () => {
    const context = canvas.getContext("2d");
    for (let x = 0; x < 256; x++) {
      context.fillStyle = css(colour(from + x / 255 * (1 - from)));
      context.fillRect(x, 0, 1, 1);
    }
  };
  find(`#${figure} .legend`).replaceChildren(make("span", {}, title), scale);
  repaints.set(figure + " legend", draw);
  draw();
}

/** What is to be drawn again when the system goes from light to dark, and the page onto paper. */
const repaints = new Map();

function repaint() {
  ramps = readRamps();
  palette = makePalette();
  for (const cell of document.querySelectorAll("[data-shade]")) shade(cell, Number(cell.dataset.shade));
  for (const draw of repaints.values()) draw();
}

function putOnPaper(isPrinted) {
  hideTip();
  document.documentElement.classList.toggle("on-paper", isPrinted);
  repaint();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
addEventListener("beforeprint", () => putOnPaper(true));
addEventListener("afterprint", () => putOnPaper(false));
