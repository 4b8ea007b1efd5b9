// Elements, the page's data, charts. Texts of models and documents enter the page as text nodes only.

const find = (selector, root = document) => root.querySelector(selector);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Characters that steer instead of showing: controls, and those that turn the direction of reading.
const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const clean = (text) => text.replace(STEERING, "\u25a1");
const brief = (text, most) => clean(text.length > most ? `${text.slice(0, most)}…` : text).replace(/\s+/g, " ");
const fixed = (value, digits = 2) => (value === null || Number.isNaN(value) ? "–" : value.toFixed(digits));

async function inflated(id) {
  const bytes = Uint8Array.from(atob(find(`#${id}`).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function halves(base64) {
  const view = new DataView(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
  const values = new Float32Array(view.byteLength / 2);
  for (let index = 0; index < values.length; index += 1) {
    const bits = view.getUint16(2 * index, true);
    const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) values[index] = fraction ? NaN : sign * Infinity;
    else values[index] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }
  return values;
}

// Dark inks are lightened where the page is dark; what stands on a colour of its own keeps its ink.
const dark = matchMedia("(prefers-color-scheme: dark)");
function lit(value) {
  if (typeof value === "string" && /^#[0-9a-f]{6}$/i.test(value) && dark.matches) {
    const parts = [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
    const luminance = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255;
    if (luminance >= 0.5) return value;
    const share = (0.62 - luminance) / (1 - luminance);
    return `#${parts.map((part) => Math.round(part + (255 - part) * share).toString(16).padStart(2, "0")).join("")}`;
  }
  if (Array.isArray(value)) return value.map(lit);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, lit(v)]));
  return value;
}

function themed(spec, width) {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line] = ["--text", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  const heatmap = JSON.stringify(spec).includes('"rect"');
  const config = {
    ...spec.config,
    background: "transparent",
    font: style.getPropertyValue("--font").trim(),
    mark: { aria: false },
    axis: { ...spec.config.axis, labelLimit: Math.min(spec.config.axis.labelLimit, width / 3), aria: false, labelColor: ink, titleColor: soft, gridColor: line, domainColor: line, tickColor: line },
    legend: { ...spec.config.legend, aria: false, labelColor: ink, titleColor: soft },
    text: { color: ink },
  };
  return { ...(heatmap ? spec : lit(spec)), config };
}

async function drawn(place, specs) {
  if (place.dataset.drawn === String(dark.matches)) return;
  place.dataset.drawn = String(dark.matches);
  const options = { ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  await window.vegaEmbed(place, themed(specs[place.dataset.chart], place.clientWidth), options);
}

function drawVisible(specs) {
  for (const place of document.querySelectorAll("[data-chart]")) if (place.offsetParent !== null) drawn(place, specs);
}

function openTarget() {
  const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target) target.scrollIntoView();
}

// A dialog over the page, so that its reader comes back to where they were.
function showIn(dialog, content) {
  const close = element("button", { type: "button", className: "close" }, "close");
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(close, ...content);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function copying(button) {
  button.addEventListener("click", async () => {
    const command = find("code", button.parentElement);
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(command);
      button.textContent = "selected: press Ctrl+C";
    }
  });
}
