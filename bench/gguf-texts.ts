/** What generation from GGUF files is compared on: beginnings to go on from, and a text to be surprised by. */

export const BEGINNINGS: readonly string[] = [
  "The water in the harbour was so still that",
  "To make bread at home, first",
  "In the middle of the nineteenth century, railways",
  "A triangle with sides of three, four and five",
  "The most important thing about learning a language is",
  "def fibonacci(n):\n    ",
  "Dear Mr. Hall,\n\nThank you for your letter of",
  "Photosynthesis is the process by which",
  "When the snow finally melted, the children",
  "The capital of Italy is",
  "There are three reasons to keep a diary. The first",
  "Once upon a time there was a fox who",
  "The difference between a comet and an asteroid is",
  "If a train leaves at noon and travels at sixty miles an hour,",
  "My grandmother always said that",
  "SELECT name, age FROM people WHERE",
  "Question: What causes the tides?\nAnswer:",
  "The orchestra fell silent as",
  "Plants need light, water and",
  "List of things to pack for a week in the mountains:\n1.",
];

export const TEXT = `The lighthouse on the northern point had been dark for eleven years when the council decided to sell it. \
Nobody expected a buyer. The road ended two miles short of it, the cistern leaked, and in winter the spray froze on the windows \
until the rooms were as dim as a cellar at midday. Yet in the first week of May a woman arrived on the mail boat, walked the two \
miles with a suitcase in each hand, and asked the harbour master for the key.

She said that she repaired clocks. There was not much call for that on the island, where most people owned one clock and set it \
by the radio, but she did not seem to mind. In the first month she replaced the glass. In the second she carried up the stairs, \
piece by piece, the parts of a machine that filled the lamp room from wall to wall: brass wheels as tall as a child, a chain, and \
a weight that hung down through the middle of the tower where the stairs turned around it.

By the end of the summer the children had found out what it was for. It was a clock that measured the tide. A float in the well \
at the foot of the tower rose and fell with the sea, and the wheels added up the pull of the sun and the pull of the moon, each in \
its own time, so that a pointer on the wall showed how high the water would stand tomorrow, and the day after, and on any day for \
the next hundred years. The fishermen laughed at it until October. Then, one evening, she came down to the harbour and told them \
to take their boats out of the water, because on Thursday the sea would come over the wall.

On Thursday it rained, and the wind turned to the north, and a little after nine the sea came over the wall. There were no boats \
there to be broken. Nobody laughed after that, and in the spring, when the council met again, the first thing they voted on was a road.
`;
