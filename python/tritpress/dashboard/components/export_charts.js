// A small menu on every chart: PNG and SVG on a white ground whatever the page looks like, and its data as CSV.

const INK = "#1b2329", PAPER = "#fffffe", GRID = "#dfe5e8"

const probe = document.createElement("canvas").getContext("2d")
const known_colours = new Map()

const channels = (colour) => {
  if (!known_colours.has(colour)) {
    probe.fillStyle = "#000000"
    probe.fillStyle = colour
    const text = probe.fillStyle
    const found = text.startsWith("#")
      ? [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)).concat(1)
      : text.match(/[\d.]+/g).map(Number)
    known_colours.set(colour, found)
  }
  return known_colours.get(colour)
}

const lightness = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b) / 255

// What the dark theme painted, for white paper: its light greys become ink, its dark ones paper.
const lighter = (colour, kind) => {
  if (typeof colour !== "string" || colour === INK || colour === PAPER || colour === GRID) return colour
  const [r, g, b, a] = channels(colour)
  if (a === 0 || Math.max(r, g, b) - Math.min(r, g, b) > 48) return colour
  if (kind === "grid") return GRID
  const light = lightness([r, g, b])
  return light >= 0.65 ? INK : light <= 0.35 ? PAPER : colour
}

const restyle = (ctx, theme) => {
  for (const name of ["fillStyle", "strokeStyle"]) {
    let proto = Object.getPrototypeOf(ctx), found
    while (proto && !(found = Object.getOwnPropertyDescriptor(proto, name))) proto = Object.getPrototypeOf(proto)
    let held = ctx[name]
    const read = found && found.get ? () => found.get.call(ctx) : () => held
    const write = found && found.set ? (value) => found.set.call(ctx, value) : (value) => { held = value }
    Object.defineProperty(ctx, name, {
      configurable: true,
      enumerable: true,
      get: read,
      set: (value) => write(theme.kind ? lighter(value, theme.kind) : value),
    })
  }
}

// Paints the chart as it is shown, at twice its size, on white. Everything happens before the browser draws again.
const painted = (view, type) => {
  const { model } = view
  const ground = channels(model.border_fill_color || model.background_fill_color || "#ffffff")
  const dark = ground[3] > 0 && lightness(ground) < 0.5
  const theme = { kind: "" }
  const put_back = []
  const instead = (object, name, made) => {
    const own = Object.getOwnPropertyDescriptor(object, name)
    Object.defineProperty(object, name, { configurable: true, writable: true, value: made })
    put_back.push(() => { own ? Object.defineProperty(object, name, own) : delete object[name] })
  }
  const primary = view._paint_primary
  instead(view, "_paint_primary", function (ctx) {
    if (dark) restyle(ctx, theme)
    return primary.call(this, ctx)
  })
  instead(view, "_paint_empty", function (ctx) {
    const { width, height } = this.bbox
    ctx.fillStyle = PAPER
    ctx.fillRect(-1, -1, width + 2, height + 2)
  })
  const outline = view._paint_outline
  instead(view, "_paint_outline", function (ctx, box) {
    theme.kind = "grid"
    try { return outline.call(this, ctx, box) } finally { theme.kind = "" }
  })
  if (dark) {
    for (const part of view.computed_renderer_views) {
      const name = part.model.type
      if (name === "GlyphRenderer" || name === "GraphRenderer") continue
      const paint = part.paint
      instead(part, "paint", function (ctx) {
        theme.kind = name === "Grid" ? "grid" : "ink"
        try { return paint.call(this, ctx) } finally { theme.kind = "" }
      })
    }
  }
  // Bokeh copies a legend's marks from small canvases made for the screen: here they are drawn anew.
  for (const part of view.computed_renderer_views) {
    if (part.model.type !== "Legend") continue
    const draw = part._draw_legend_items
    instead(part, "_draw_legend_items", function (ctx, box) {
      ctx.drawImage = () => {}
      try { draw.call(this, ctx, box) } finally { delete ctx.drawImage }
      const { glyph_width, glyph_height } = this.model
      for (const { glyph, item, label } of this.entries) {
        const place = glyph.canvas.getBoundingClientRect()
        if (!item.visible || !place.width) continue
        ctx.save()
        ctx.translate(place.x - view.canvas_view.el.getBoundingClientRect().x,
          place.y - view.canvas_view.el.getBoundingClientRect().y)
        for (const renderer of item.renderers) {
          this.plot_view.views.find_one(renderer)
            ?.draw_legend(ctx, 0, glyph_width, 0, glyph_height, item.get_field_from_label_prop(), label, item.index)
        }
        ctx.restore()
      }
    })
  }
  const ratio = Object.getOwnPropertyDescriptor(window, "devicePixelRatio")
  if (type === "png") Object.defineProperty(window, "devicePixelRatio", { configurable: true, value: 2 })
  try {
    return view.export(type, type === "png")
  } finally {
    if (type === "png") {
      if (ratio) Object.defineProperty(window, "devicePixelRatio", ratio)
      else delete window.devicePixelRatio
    }
    for (const undo of put_back.reverse()) undo()
  }
}

// Columns that only style a mark (colours, widths, sizes) are no data.
const styling = /(_color|_alpha|_width|_dash|_cap|_join|_font|_style|_size|^size|^marker|^angle|_offset)$/

// The middle and the value of every cell of a picture.
const pixels = ({ source, picture }) => source.data[picture.image.field].flatMap((cells, at) => {
  const [rows, columns] = cells.shape
  const [x, y, dw, dh] = ["x", "y", "dw", "dh"].map((name) => {
    const spec = picture[name]
    return spec.field !== undefined ? source.data[spec.field][at] : spec.value ?? spec
  })
  return Array.from(cells, (value, n) =>
    [x + (n % columns + 0.5) * dw / columns, y + (Math.floor(n / columns) + 0.5) * dh / rows, value])
})

const chart_rows = (model) => {
  const groups = []
  for (const renderer of model.renderers) {
    const source = renderer.data_source
    if (!source || !source.data || renderer.visible === false) continue
    if ((source.name || "").startsWith("lone:")) continue  // values of the line that it does not show
    let group = groups.find((one) => one.source === source)
    if (!group) groups.push(group = { source, used: new Set(), style: new Set(), label: renderer.name || "" })
    if (renderer.glyph.type === "Image") group.picture = renderer.glyph
    for (const [name, value] of Object.entries(renderer.glyph.attributes)) {
      if (!value || value.field === undefined) continue
      const style = styling.test(name) && !value.transform
      group[style ? "style" : "used"].add(value.field)
    }
  }
  const labels = new Map()
  for (const part of [...model.above, ...model.below, ...model.left, ...model.right, ...model.center]) {
    if (part.type !== "Legend") continue
    for (const item of part.items) {
      const words = typeof item.label === "string" ? item.label : item.label && (item.label.value ?? item.label)
      for (const renderer of item.renderers) labels.set(renderer.data_source, words)
    }
  }
  const pictures = groups.filter(({ picture }) => picture)
  if (pictures.length) return [["x", "y", "value"], ...pictures.flatMap(pixels)]
  const filled = groups.filter(({ source }) => (Object.values(source.data)[0] || []).length)
  const names = []
  for (const group of filled) {
    group.columns = Object.keys(group.source.data).filter((name) => !group.style.has(name) || group.used.has(name))
    for (const name of group.columns) if (!names.includes(name)) names.push(name)
  }
  const several = filled.length > 1
  const rows = [several ? ["series", ...names] : names]
  for (const { source, columns, label } of filled) {
    const count = (source.data[columns[0]] || []).length
    const series = typeof labels.get(source) === "string" ? labels.get(source) : label || source.name || ""
    for (let at = 0; at < count; at++) {
      const row = names.map((name) => columns.includes(name) ? source.data[name][at] : "")
      rows.push(several ? [series, ...row] : row)
    }
  }
  return rows
}

const title_of = (model) => (model.title && (typeof model.title === "string" ? model.title : model.title.text)) || ""
const chart_name = (model) => clean((model.name || title_of(model) || "chart").toLowerCase())

const KINDS = {
  png: ["PNG picture", async (view, name) => save(name, await painted(view, "png").to_blob())],
  svg: ["SVG drawing", async (view, name) => save(name, await painted(view, "svg").to_blob())],
  csv: ["CSV of its data", async (view, name) => save(name, csv(chart_rows(view.model)), "text/csv;charset=utf-8")],
}

const BUTTON = `
  .tp-export { all: unset; position: absolute; top: 0; right: 0; width: 26px; height: 26px; display: grid;
    place-items: center; cursor: pointer; border-radius: 6px; z-index: 5; color: var(--panel-on-surface-color, #444);
    background: var(--panel-surface-color, #fff); }
  .tp-export:not(:hover, :focus-visible) > * { opacity: .62; }
  .tp-export:hover, .tp-export:focus-visible, .tp-export[aria-expanded="true"] { opacity: 1; }
  .tp-export:hover { background: color-mix(in srgb, currentColor 12%, var(--panel-surface-color, #fff)); }
  .tp-export:focus-visible { outline: 2px solid var(--panel-primary-color, #0b6190); outline-offset: -2px; }
  .tp-export svg { width: 16px; height: 16px; display: block; }
`

const ICON = '<svg viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" '
  + 'stroke-linejoin="round" aria-hidden="true"><path d="M8 2v8M4.8 7 8 10.2 11.2 7M2.5 11v2.5h11V11"/></svg>'

class ChartMenu {
  constructor() {
    this.box = document.createElement("div")
    this.box.setAttribute("popover", "auto")
    this.box.setAttribute("role", "menu")
    this.box.dataset.exportMenu = ""
    Object.assign(this.box.style, { position: "fixed", inset: "auto", margin: "0", padding: "4px", minWidth: "150px",
      border: "1px solid color-mix(in srgb, currentColor 25%, transparent)", borderRadius: "8px",
      boxShadow: "0 4px 18px rgba(0, 0, 0, .25)", font: "14px/1.4 Roboto, Arial, sans-serif" })
    for (const [kind, [words]] of Object.entries(KINDS)) {
      const item = document.createElement("button")
      item.type = "button"
      item.setAttribute("role", "menuitem")
      item.dataset.kind = kind
      item.tabIndex = -1
      item.textContent = words
      item.style.cssText = "all:unset;display:block;box-sizing:border-box;width:100%;padding:6px 12px;"
        + "border-radius:5px;cursor:pointer"
      const mark = (on) => { item.style.background = on ? "color-mix(in srgb, currentColor 13%, transparent)" : "" }
      item.addEventListener("focus", () => mark(true))
      item.addEventListener("blur", () => mark(false))
      item.addEventListener("pointerenter", () => item.focus())
      item.addEventListener("click", () => this.choose(kind))
      this.box.append(item)
    }
    this.box.addEventListener("keydown", (event) => this.key(event))
    this.box.addEventListener("toggle", (event) => {
      if (event.newState === "closed" && this.button) this.button.setAttribute("aria-expanded", "false")
    })
    document.body.append(this.box)
  }

  open(button, view) {
    this.button = button
    this.view = view
    const style = getComputedStyle(button)
    this.box.style.color = style.color
    this.box.style.background = getComputedStyle(document.body).getPropertyValue("--panel-surface-color")
      || style.backgroundColor
    this.box.setAttribute("aria-label", button.getAttribute("aria-label"))
    this.box.showPopover()
    const place = button.getBoundingClientRect(), own = this.box.getBoundingClientRect()
    this.box.style.left = `${Math.max(4, Math.min(place.right - own.width, window.innerWidth - own.width - 4))}px`
    const below = place.bottom + 4 + own.height <= window.innerHeight
    this.box.style.top = `${below ? place.bottom + 4 : Math.max(4, place.top - own.height - 4)}px`
    button.setAttribute("aria-expanded", "true")
    this.box.firstElementChild.focus()
  }

  close() {
    this.box.hidePopover()
    if (this.button) this.button.focus()
  }

  key(event) {
    const items = Array.from(this.box.children), at = items.indexOf(document.activeElement)
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key]
    if (to !== undefined) {
      items[(to + items.length) % items.length].focus()
      event.preventDefault()
    } else if (event.key === "Tab" || event.key === "Escape") {
      this.close()
      event.preventDefault()
    } else if (event.key === "Enter" || event.key === " ") {
      this.choose(items[Math.max(at, 0)].dataset.kind)
      event.preventDefault()
    }
  }

  choose(kind) {
    const view = this.view
    this.close()
    KINDS[kind][1](view, `${run_name()}-${chart_name(view.model)}.${kind}`)
      .catch((error) => console.error("tritpress: the chart was not saved", error))
  }

  attach(view) {
    const root = view.shadow_el
    if (!root || !title_of(view.model) || root.querySelector(".tp-export")) return
    const style = document.createElement("style")
    style.textContent = BUTTON
    const button = document.createElement("button")
    button.type = "button"
    button.className = "tp-export"
    button.innerHTML = ICON
    button.setAttribute("aria-haspopup", "menu")
    button.setAttribute("aria-expanded", "false")
    button.dataset.export = chart_name(view.model)
    const named = () => {
      const words = `Save chart: ${title_of(view.model)}`
      button.setAttribute("aria-label", words)
      button.title = "Save this chart"
    }
    named()
    button.addEventListener("focus", named)
    button.addEventListener("pointerenter", named)
    // The chart below must not take the click for one on its own marks.
    for (const kind of ["pointerdown", "pointerup", "mousedown", "touchstart", "wheel"]) {
      button.addEventListener(kind, (event) => event.stopPropagation(), { passive: true })
    }
    button.addEventListener("click", (event) => {
      event.stopPropagation()
      button.getAttribute("aria-expanded") === "true" ? this.close() : this.open(button, view)
    })
    root.append(style, button)
  }
}

// Charts come and go with runs and tabs; one look a second finds new ones, none while nobody sees the page.
export function render({ model }) {
  const menu = new ChartMenu()
  const look = () => {
    if (document.visibilityState === "hidden") return
    for (const view of Bokeh.index.query((one) => one.model.type === "Figure" && one.model.title)) menu.attach(view)
  }
  const timer = setInterval(look, 1000)
  document.addEventListener("click", on_click)
  model.on("remove", () => {
    clearInterval(timer)
    document.removeEventListener("click", on_click)
    menu.box.remove()
  })
  look()
  const mark = document.createElement("span")
  mark.hidden = true
  return mark
}
