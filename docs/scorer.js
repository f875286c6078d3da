// Sphinx's weights of search hits, but a section (a function has one of its own) comes before a page that only names it
var Scorer = {
  score: ([, , anchor, , score]) => score + (anchor ? 10 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
