// Makes what stands in `place` the same as `wanted` (HTML, or an element with the children wanted) and
// changes only what differs: what stays keeps its scroll position, selection, focus and hover, and a
// <details> is as open as its reader left it. Children that are new or gone are told by what stays equal
// before and after them, by `id` or `data-key` where they have one, else by their tag in their order.
const morph = (() => {
  const aside = document.implementation.createHTMLDocument("")  // nothing read in there loads or runs
  const key_of = (node) =>
    node.nodeType === 1 ? node.getAttribute("id") || node.getAttribute("data-key") : null
  const alike = (old, made) => old.nodeName === made.nodeName && old.namespaceURI === made.namespaceURI
    && key_of(old) === key_of(made)

  const readers_own = (old, name) => name === "open" && old.localName === "details"

  const same = (old, made) => {
    if (old.nodeType !== 1) {
      if (old.nodeValue !== made.nodeValue) old.nodeValue = made.nodeValue
      return
    }
    if (old.isEqualNode(made)) return
    const words = old.getAttribute("data-words")  // what a button says again that says "Copied" for a moment
    for (const { name } of [...old.attributes]) {
      if (!made.hasAttribute(name) && !readers_own(old, name)) old.removeAttribute(name)
    }
    for (const one of made.attributes) {  // as nodes: the parser takes names that setAttribute refuses
      if (old.getAttribute(one.name) === one.value || readers_own(old, one.name)) continue
      old.setAttributeNode(one.cloneNode())
    }
    if (words === null) children(old, made)
    else old.setAttribute("data-words", made.textContent)
  }

  const children = (old, made) => {
    const had = [...old.childNodes], wanted = [...made.childNodes]
    let begin = 0, end = had.length, until = wanted.length
    while (begin < end && begin < until && had[begin].isEqualNode(wanted[begin])) begin++
    while (begin < end && begin < until && had[end - 1].isEqualNode(wanted[until - 1])) { end--; until-- }
    const keyed = new Map(had.slice(begin, end).map((node) => [key_of(node), node]))
    let at = begin
    const found = wanted.slice(begin, until).map((node) => {
      const key = key_of(node)
      if (key) {
        const known = keyed.get(key)
        keyed.delete(key)
        return [node, known && alike(known, node) ? known : undefined]
      }
      let next = at
      while (next < end && !alike(had[next], node)) next++
      if (next === end) return [node, undefined]
      at = next + 1
      return [node, had[next]]
    })
    const kept = new Set(found.map(([, known]) => known))
    for (const node of had.slice(begin, end)) if (!kept.has(node)) node.remove()
    let place = begin ? had[begin - 1].nextSibling : old.firstChild
    for (const [node, known] of found) {
      if (known === undefined) old.insertBefore(node, place)
      else if (known === place) place = place.nextSibling
      else if (old.moveBefore) old.moveBefore(known, place)  // keeps focus and scroll position
      else old.insertBefore(known, place)
      if (known !== undefined) same(known, node)
    }
  }

  return (place, wanted) => keeping_focus(place, () => {
    if (typeof wanted !== "string") return children(place, wanted)
    const made = aside.createElement(place.localName)
    made.innerHTML = wanted
    children(place, made)
  })
})()

// Does `change` to what stands in `place`; a control that had the focus and had to be made anew has it again.
const keeping_focus = (place, change) => {
  const found = () => [...place.querySelectorAll("a[href], button, input, select, summary, [tabindex]")]
  const root = place.getRootNode(), held = root.activeElement
  if (!held || !place.contains(held)) return change()
  const at = found().indexOf(held)
  change()
  const now = place.contains(held) ? held : found()[at]
  if (now === root.activeElement || !now) return
  if (now === held || (now.tagName === held.tagName && now.textContent === held.textContent)) {
    now.focus({ preventScroll: true })
  }
}

// How a fragment is written: Panel's `write` is left the first time, and where it does more than write: it
// runs scripts, and gives code blocks and links within the page handlers of their own.
const MORE = /<(script|template|noscript|iframe)|codehilite|href\s*=\s*["']?#/i
const morphing = (write) => function (text) {
  const plain = typeof text === "string" && !MORE.test(text) && !this._event_listeners?.size
  if (plain && this.morphed && this.morphed === this.container) morph(this.container, text)
  else if (this.container) keeping_focus(this.container, () => write.call(this, text))
  else write.call(this, text)
  this.morphed = plain ? this.container : null
}
