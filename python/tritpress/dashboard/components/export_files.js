// Saving files from the page: names, CSV of tables, pictures from drawings, a zip of it all.

const clean = (text) => String(text).normalize("NFKD").replace(/[^A-Za-z0-9._-]+/g, "-")
  .replace(/^[-.]+|-+$/g, "").slice(0, 100)

const run_name = () => {
  const run = new URLSearchParams(window.location.search).get("run") || ""
  return clean(run.split(",").join("+").replace(/\+/g, "-and-")) || "tritpress"
}

const save = (name, content, type) => {
  const blob = content instanceof Blob ? content : new Blob([content], { type })
  const link = document.createElement("a")
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.hidden = true
  document.body.append(link)
  link.click()
  link.remove()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

// Text that a spreadsheet would run as a formula is told apart by an apostrophe; numbers and ranges of numbers
// stay what they are.
const csv_cell = (value) => {
  if (value === null || value === undefined || (typeof value === "number" && !Number.isFinite(value))) return ""
  let text = String(value)
  if (typeof value !== "number" && /^[=+\-@\t\r]/.test(text) && !/^[+-][\d.,%()+\-\s]*( to [\d.,%()+\-\s]*)?$/.test(text)) text = "'" + text
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text
}

const csv = (rows) => rows.map((row) => row.map(csv_cell).join(",") + "\r\n").join("")

// A table, or a list that carries its headings and each item's cells as JSON in data-line.
const table_csv = (table) => table.rows
  ? csv(Array.from(table.rows, (row) => Array.from(row.cells, (cell) => {
    const copy = cell.cloneNode(true)
    for (const part of copy.querySelectorAll("[data-no-csv]")) part.remove()
    return copy.textContent.replace(/\s+/g, " ").replace(/ [▲▼]$/, "").trim().replaceAll("−", "-")
  })))
  : csv([table, ...table.querySelectorAll("[data-line]")].map((line) => JSON.parse(line.dataset.line)))

// Puts text on the clipboard, on plain http too.
const copied = async (text) => {
  if (window.isSecureContext && navigator.clipboard) {
    try { await navigator.clipboard.writeText(text); return true } catch (error) { /* the older way */ }
  }
  const field = document.createElement("textarea")
  field.value = text
  field.style.cssText = "position:fixed;opacity:0"
  document.body.append(field)
  field.select()
  const done = document.execCommand("copy")
  field.remove()
  return done
}

const table_beside = (button) => {
  for (let place = button.parentElement; place; place = place.parentElement) {
    const table = place.querySelector("table, ol[data-line]")
    if (table) return table
  }
  return button.getRootNode().querySelector("table, ol[data-line]")
}

// Buttons in any fragment of the page: data-csv="NAME" saves the table beside it, data-copy="TEXT" copies TEXT.
const on_click = async (event) => {
  const button = event.composedPath().find((part) => part.dataset && (part.dataset.csv || part.dataset.copy))
  if (!button) return
  if (button.dataset.csv) {
    const table = table_beside(button)
    const name = `${run_name()}-${clean(button.dataset.csv)}.csv`
    if (table) save(name, table_csv(table), "text/csv;charset=utf-8")
    return
  }
  const done = await copied(button.dataset.copy)
  if (button.dataset.words !== undefined) return
  button.dataset.words = button.textContent
  button.textContent = done ? "Copied" : "Select it by hand"
  setTimeout(() => { button.textContent = button.dataset.words; delete button.dataset.words }, 2000)
}

const picture_of = async (svg, scale = 2) => {
  const url = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }))
  try {
    const image = new Image()
    image.src = url
    await image.decode()
    const canvas = document.createElement("canvas")
    canvas.width = Math.round(image.naturalWidth * scale)
    canvas.height = Math.round(image.naturalHeight * scale)
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height)
    // Not toBlob: it waits up to a second for the browser to be idle, for each picture anew.
    const coded = atob(canvas.toDataURL("image/png").split(",")[1])
    return new Blob([Uint8Array.from(coded, (char) => char.charCodeAt(0))], { type: "image/png" })
  } finally {
    URL.revokeObjectURL(url)
  }
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1
  return n >>> 0
})

const crc32 = (bytes) => {
  let crc = 0xffffffff
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 0xff] ^ (crc >>> 8)
  return (crc ^ 0xffffffff) >>> 0
}

const squeezed = async (bytes) => {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

// files: [path, Blob or text]. Zip 2.0, names in UTF-8, each file deflated when that makes it smaller.
const zip = async (files) => {
  const parts = [], entries = []
  let offset = 0
  const now = new Date()
  const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1)
  const day = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate()
  const record = (numbers) => {
    const view = new DataView(new ArrayBuffer(numbers.reduce((sum, [size]) => sum + size, 0)))
    let at = 0
    for (const [size, value] of numbers) {
      size === 4 ? view.setUint32(at, value, true) : view.setUint16(at, value, true)
      at += size
    }
    return new Uint8Array(view.buffer)
  }
  for (const [path, content] of files) {
    const name = new TextEncoder().encode(path)
    const plain = content instanceof Blob ? new Uint8Array(await content.arrayBuffer()) : new TextEncoder().encode(content)
    const small = await squeezed(plain)
    const method = small.length < plain.length ? 8 : 0
    const data = method ? small : plain
    const common = [[2, 20], [2, 0x0800], [2, method], [2, time], [2, day], [4, crc32(plain)],
      [4, data.length], [4, plain.length], [2, name.length], [2, 0]]
    const head = record([[4, 0x04034b50], ...common])
    entries.push(record([[4, 0x02014b50], [2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]]), name)
    parts.push(head, name, data)
    offset += head.length + name.length + data.length
  }
  const size = entries.reduce((sum, part) => sum + part.length, 0)
  const end = record([[4, 0x06054b50], [2, 0], [2, 0], [2, files.length], [2, files.length], [4, size],
    [4, offset], [2, 0]])
  return new Blob([...parts, ...entries, end], { type: "application/zip" })
}
