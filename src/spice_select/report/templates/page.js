(function () {
  "use strict";
  var root = document.documentElement;
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

  var search = document.getElementById("search");
  if (!search) { return; }
  var rows = Array.prototype.slice.call(document.querySelectorAll("#picks tbody tr"));
  var count = document.getElementById("count");
  var words = rows.map(function (row) { return row.textContent.toLowerCase(); });
  function filter() {
    /* Every word must be there; words within quotation marks, as they stand. */
    var wanted = (search.value.toLowerCase().match(/"[^"]+"|[^\s"]+/g) || []).map(function (word) {
      return word.replace(/"/g, "");
    });
    var shown = 0;
    rows.forEach(function (row, place) {
      var fits = wanted.every(function (word) { return words[place].indexOf(word) >= 0; });
      row.hidden = !fits;
      if (fits) { shown += 1; }
    });
    count.textContent = shown + " of " + rows.length;
  }
  document.getElementById("finder").hidden = false;
  search.addEventListener("input", filter);
  /* A search can be linked to: report.html#find=words */
  function linked() {
    if (window.location.hash.indexOf("#find=") !== 0) { return; }
    try { search.value = decodeURIComponent(window.location.hash.slice(6)); } catch (error) { return; }
    filter();
  }
  window.addEventListener("hashchange", linked);
  filter();
  linked();
})();
