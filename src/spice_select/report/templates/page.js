(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.add("scripted");

  /* Theme. */
  var toggle = document.getElementById("theme");
  function remember(value) {
    try {
      if (value === undefined) { return window.localStorage.getItem("spice-theme"); }
      window.localStorage.setItem("spice-theme", value);
    } catch (error) { /* storage may be forbidden: the choice then lasts as long as the page */ }
    return null;
  }
  function dark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function label() {
    toggle.textContent = dark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
  }
  var kept = remember();
  if (kept === "dark" || kept === "light") { root.dataset.theme = kept; }
  toggle.hidden = false;
  toggle.addEventListener("click", function () {
    root.dataset.theme = dark() ? "light" : "dark";
    remember(root.dataset.theme);
    label();
  });
  label();

  var map = document.getElementById("points") ? makeMap() : null;
  makeSearch();

  /* The map: points are drawn as one path a kind, as on the page without script. */
  function makeMap() {
    var data = JSON.parse(document.getElementById("points").textContent);
    var plane = document.getElementById("plane");
    var drawing = plane.querySelector("svg");
    var ring = document.getElementById("ring");
    var detail = document.getElementById("detail");
    var hint = document.getElementById("hint");
    var boxes = Array.prototype.slice.call(document.querySelectorAll("#kinds input"));
    var total = data.x.length;
    var fits = [];
    var shown = [];
    var words = null;
    var current = -1;
    var pinned = false;
    /* What is seen: a window of the drawing around a point, so many times enlarged. */
    var view = { zoom: 1, x: 300, y: 300 };
    var dragged = null;
    var cross = drawing.querySelector(".cross");
    var centre = cross.dataset;
    for (var i = 0; i < total; i += 1) { fits.push(true); shown.push(true); }

    function px(x) { return (x - view.x) * view.zoom + 300; }
    function py(y) { return (y - view.y) * view.zoom + 300; }
    function look(zoom, x, y) {
      view.zoom = Math.min(64, Math.max(1, zoom));
      var reach = 300 - 300 / view.zoom;
      view.x = Math.min(300 + reach, Math.max(300 - reach, x));
      view.y = Math.min(300 + reach, Math.max(300 - reach, y));
      /* Enlarged, a finger moves the map; whole, it scrolls the page. */
      plane.style.touchAction = view.zoom > 1 ? "none" : "";
      draw();
      mark();
      Array.prototype.forEach.call(document.querySelectorAll("#zoom button"), function (button) {
        button.disabled = button.dataset.zoom === "in" ? view.zoom >= 64 : view.zoom <= 1;
      });
    }
    function zoomBy(factor) {
      var at = current >= 0 ? { x: data.x[current], y: data.y[current] } : view;
      look(view.zoom * factor, at.x, at.y);
    }
    function shape(kind, x, y) {
      x = px(x).toFixed(1);
      y = py(y);
      if (x < -20 || x > 620 || y < -20 || y > 620) { return ""; }
      if (kind === 0) { return "M" + x + "," + y.toFixed(1) + "h0"; }
      if (kind === 2) { return "M" + x + "," + (y - 5.5).toFixed(1) + "l5.5,5.5l-5.5,5.5l-5.5,-5.5z"; }
      return "M" + x + "," + (y - 6).toFixed(1) + "l5.5,10h-11z";
    }
    function draw() {
      var paths = [[], [], [], []];
      var faint = [];
      var on = boxes.map(function (box) { return box.checked; });
      for (var i = 0; i < total; i += 1) {
        shown[i] = on[data.kind[i]] && fits[i];
        if (!on[data.kind[i]]) { continue; }
        if (fits[i]) { paths[data.kind[i]].push(shape(data.kind[i], data.x[i], data.y[i])); }
        else { faint.push(shape(0, data.x[i], data.y[i])); }
      }
      paths.forEach(function (parts, kind) { document.getElementById("kind-" + kind).setAttribute("d", parts.join("")); });
      document.getElementById("faint").setAttribute("d", faint.join(""));
      cross.setAttribute("d", "M" + px(+centre.x) + ",0v600M0," + py(+centre.y) + "h600");
      if (current >= 0 && !shown[current]) { pinned = false; show(-1); }
    }
    function element(name, text, type) {
      var made = document.createElement(name);
      if (type) { made.className = type; }
      if (text !== undefined) { made.textContent = text; }
      return made;
    }
    function fact(list, name, value) {
      if (value === undefined || value === null || value === "") { return; }
      var pair = element("div");
      pair.appendChild(element("dt", name));
      pair.appendChild(element("dd", String(value)));
      list.appendChild(pair);
    }
    function mark() {
      ring.setAttribute("cx", current < 0 ? -50 : px(data.x[current]));
      ring.setAttribute("cy", current < 0 ? -50 : py(data.y[current]));
    }
    function step(place) {
      var half = 290 / view.zoom;
      if (Math.abs(data.x[place] - view.x) > half || Math.abs(data.y[place] - view.y) > half) {
        look(view.zoom, data.x[place], data.y[place]);
      }
      show(place);
    }
    function show(place) {
      if (place === current) { return; }
      current = place;
      mark();
      detail.textContent = "";
      if (place < 0) { detail.appendChild(hint); return; }
      var head = element("h3", data.rank[place] ? "Pick " + data.rank[place] : "Left out");
      detail.appendChild(head);
      if (data.source.length) {
        var source = element("p", undefined, "soft");
        source.appendChild(element("bdi", data.sources[data.source[place]]));
        source.appendChild(document.createTextNode(", row " + data.row[place]));
        detail.appendChild(source);
      }
      var list = element("dl");
      fact(list, data.rank[place] ? "Gain" : "Gain left", data.gain[place]);
      fact(list, "Conflict", data.conflict[place]);
      fact(list, "Tokens", data.tokens[place]);
      fact(list, "Norm", data.norm[place]);
      detail.appendChild(list);
      if (data.anchor[place]) {
        var link = element("a", "Show it in the table");
        link.href = "#" + data.anchor[place];
        detail.appendChild(link);
      }
      var text = element("div", undefined, "short");
      (data.text[place] || "Its text is not at hand.").split("\n").forEach(function (line) {
        var said = element("p", line);
        said.dir = "auto";
        text.appendChild(said);
      });
      detail.appendChild(text);
    }
    function nearest(event, reach) {
      var box = drawing.getBoundingClientRect();
      var scale = 600 / box.width;
      var x = (event.clientX - box.left) * scale;
      var y = (event.clientY - box.top) * scale;
      var best = -1;
      var least = reach * scale * reach * scale;
      /* Later points are drawn above earlier ones, so of two as near the later is meant. */
      for (var i = 0; i < total; i += 1) {
        if (!shown[i]) { continue; }
        var across = px(data.x[i]) - x;
        var down = py(data.y[i]) - y;
        var gap = across * across + down * down;
        if (gap <= least) { least = gap; best = i; }
      }
      return best;
    }
    function towards(dx, dy) {
      var best = -1;
      var least = Infinity;
      for (var i = 0; i < total; i += 1) {
        if (!shown[i] || i === current) { continue; }
        var ahead = (data.x[i] - data.x[current]) * dx + (data.y[i] - data.y[current]) * dy;
        var aside = Math.abs((data.x[i] - data.x[current]) * dy) + Math.abs((data.y[i] - data.y[current]) * dx);
        if (ahead < 0.05 || aside > ahead) { continue; }
        if (ahead + 2 * aside < least) { least = ahead + 2 * aside; best = i; }
      }
      return best;
    }
    function byRank(step) {
      var rank = current >= 0 ? data.rank[current] : 0;
      var best = -1;
      for (var i = 0; i < total; i += 1) {
        if (!shown[i] || !data.rank[i]) { continue; }
        var ahead = step > 0 ? data.rank[i] > rank : data.rank[i] < rank;
        if (ahead && (best < 0 || (step > 0 ? data.rank[i] < data.rank[best] : data.rank[i] > data.rank[best]))) { best = i; }
      }
      return best;
    }
    function first() {
      var found = byRank(1);
      return found >= 0 ? found : shown.indexOf(true);
    }
    plane.addEventListener("pointerdown", function (event) {
      dragged = view.zoom > 1 && event.button === 0 ? { x: event.clientX, y: event.clientY, far: false } : null;
    });
    plane.addEventListener("pointermove", function (event) {
      if (dragged && event.buttons === 1) {
        var dx = event.clientX - dragged.x;
        var dy = event.clientY - dragged.y;
        if (dragged.far || Math.abs(dx) + Math.abs(dy) > 4) {
          var size = 600 / drawing.getBoundingClientRect().width / view.zoom;
          dragged = { x: event.clientX, y: event.clientY, far: true };
          look(view.zoom, view.x - dx * size, view.y - dy * size);
        }
        return;
      }
      if (!pinned && event.pointerType !== "touch") { show(nearest(event, 16)); }
    });
    plane.addEventListener("pointerleave", function (event) {
      if (!pinned && event.pointerType !== "touch" && document.activeElement !== plane) { show(-1); }
    });
    plane.addEventListener("click", function (event) {
      if (dragged && dragged.far) { dragged = null; return; }
      var place = nearest(event, 28);
      pinned = place >= 0;
      show(place);
    });
    plane.addEventListener("dblclick", function (event) {
      var box = drawing.getBoundingClientRect();
      var x = (event.clientX - box.left) * 600 / box.width;
      var y = (event.clientY - box.top) * 600 / box.width;
      look(view.zoom * 2, view.x + (x - 300) / view.zoom, view.y + (y - 300) / view.zoom);
    });
    plane.addEventListener("focus", function () {
      if (current < 0 && plane.matches(":focus-visible")) { show(first()); }
    });
    plane.addEventListener("keydown", function (event) {
      var steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      var place = -1;
      if (event.ctrlKey || event.altKey || event.metaKey) { return; }
      if (steps[event.key]) { place = current < 0 ? first() : towards(steps[event.key][0], steps[event.key][1]); }
      else if (event.key === "PageDown") { place = byRank(1); }
      else if (event.key === "PageUp") { place = byRank(-1); }
      else if (event.key === "Home") { current = -1; place = first(); }
      else if (event.key === "+" || event.key === "=") { zoomBy(2); }
      else if (event.key === "-") { zoomBy(0.5); }
      else if (event.key === "0") { look(1, 300, 300); }
      else if (event.key === "Enter" || event.key === " ") { pinned = current >= 0; place = current; }
      else if (event.key === "Escape") { pinned = false; show(-1); return; }
      else { return; }
      event.preventDefault();
      if (place >= 0) { step(place); }
    });
    Array.prototype.forEach.call(document.querySelectorAll("#zoom button"), function (button) {
      button.addEventListener("click", function () {
        if (button.dataset.zoom === "whole") { look(1, 300, 300); }
        else { zoomBy(button.dataset.zoom === "in" ? 2 : 0.5); }
      });
    });
    look(1, 300, 300);
    boxes.forEach(function (box) { box.addEventListener("change", draw); });
    return {
      total: total,
      filter: function (test) {
        if (!words) {
          words = data.text.map(function (text, place) {
            var name = data.source.length ? data.sources[data.source[place]] : "";
            return (text + "\n" + name + "\n" + data.row[place]).toLowerCase();
          });
        }
        var count = 0;
        for (var i = 0; i < total; i += 1) { fits[i] = test(words[i]); count += fits[i] ? 1 : 0; }
        draw();
        return count;
      }
    };
  }

  /* One field searches all tables and the map. */
  function makeSearch() {
    var search = document.getElementById("search");
    if (!search) { return; }
    var found = document.getElementById("found");
    var count = document.getElementById("count");
    var few = 20;
    var lists = Array.prototype.map.call(document.querySelectorAll("section.listed"), function (section) {
      var rows = Array.prototype.slice.call(section.querySelectorAll("tbody tr"));
      var list = {
        count: section.querySelector(".count"),
        more: section.querySelector(".more"),
        open: rows.length <= few,
        rows: rows,
        words: rows.map(function (row) { return row.textContent.toLowerCase(); })
      };
      list.more.addEventListener("click", function () {
        list.open = true;
        filter();
        /* The button is gone: the focus goes on where the new lines begin. */
        var next = rows.length > few ? rows[few].querySelector("summary") : null;
        if (next) { next.focus({ preventScroll: true }); }
      });
      return list;
    });
    var all = lists.reduce(function (sum, list) { return sum + list.rows.length; }, 0);
    function filter() {
      /* Every word must be there; words within quotation marks, as they stand. */
      var wanted = (search.value.toLowerCase().match(/"[^"]+"|[^\s"]+/g) || []).map(function (word) {
        return word.replace(/"/g, "");
      });
      function test(text) {
        return wanted.every(function (word) { return text.indexOf(word) >= 0; });
      }
      /* The page keeps its height while a search is on, so that nothing jumps under the reader. */
      if (wanted.length && !found.style.minHeight) { found.style.minHeight = found.offsetHeight + "px"; }
      if (!wanted.length) { found.style.minHeight = ""; }
      var shown = 0;
      lists.forEach(function (list) {
        var here = 0;
        list.rows.forEach(function (row, place) {
          var fits = test(list.words[place]);
          row.hidden = !fits || !(list.open || wanted.length || place < few);
          if (fits) { here += 1; }
        });
        list.more.hidden = list.open || wanted.length > 0;
        shown += here;
        list.count.textContent = wanted.length ? here + " of " + list.rows.length : "";
      });
      var said = [];
      if (all) { said.push(shown + " of " + all + " lines"); }
      if (map) { said.push((wanted.length ? map.filter(test) : map.filter(function () { return true; })) + " of " + map.total + " points"); }
      count.textContent = said.join(", ");
    }
    /* A link into a table opens it. */
    function reveal() {
      var id = window.location.hash.slice(1);
      var row = id ? document.getElementById(id) : null;
      if (!row || row.tagName !== "TR") { return; }
      lists.forEach(function (list) { if (list.rows.indexOf(row) >= 0) { list.open = true; } });
      search.value = "";
      filter();
      var details = row.querySelector("details");
      if (details) { details.open = true; }
      row.scrollIntoView({ block: "center" });
    }
    document.getElementById("finder").hidden = false;
    var waiting = 0;
    search.addEventListener("input", function () {
      window.clearTimeout(waiting);
      waiting = window.setTimeout(filter, 60);
    });
    /* A search can be linked to: report.html#find=words */
    function linked() {
      if (window.location.hash.indexOf("#find=") !== 0) { return; }
      try { search.value = decodeURIComponent(window.location.hash.slice(6)); } catch (error) { return; }
      filter();
    }
    window.addEventListener("hashchange", function () { linked(); reveal(); });
    filter();
    linked();
    reveal();
  }
})();
