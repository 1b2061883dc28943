"""64 short texts on which a loss is measured where no others are given: stories, facts, talk, advice, letters, code.

Written for this library. Eight kinds of eight, in groups of one of each kind, so that any stretch of them is mixed.
"""

from __future__ import annotations

_STORIES = """\
The old ferryman tied his boat to the post and counted the coins twice before he went up the hill to sleep.
When the lamp went out, Maren felt along the wall for the door and heard somebody breathing on the other side.
My grandmother kept a jar of buttons on the shelf, and each of them belonged to a coat that nobody wore any more.
The dog followed the postman for three streets, sat down in front of the bakery and would not move until evening.
After the storm the children found a crate on the beach with nothing in it but straw and one blue glass bottle.
He had walked so long in the snow that he no longer felt his feet, yet he did not dare to stop and light a fire.
The train left at nine, but Tomas was still standing on the platform, holding the letter he had meant to give her.
Nobody in the village could say who had planted the pear tree, although everybody ate from it in September."""

_FACTS = """\
Copper conducts electricity better than iron, which is why it is drawn into wire for most household cables.
The river rises in the northern mountains, crosses two lakes and reaches the sea after about four hundred kilometres.
A honeybee visits between fifty and a hundred flowers on one flight before it returns to the hive with its load.
Glass is made by melting sand with soda and lime at a high temperature and letting the mixture cool without crystals.
The town received its charter in the thirteenth century and was for a long time the largest market for wool in the area.
Sound travels faster in water than in air because the molecules of water are packed much more closely together.
Bread rises when yeast turns part of the sugar in the dough into carbon dioxide, which is caught by the gluten.
The moon always shows the same side to the earth, since it turns once about its axis in the time of one orbit."""

_TALK = """\
"Are you coming with us on Saturday?" "I would like to, but my sister needs the car, so it depends on the bus."
"You said it would take an hour." "I said an hour if nothing went wrong, and then the pump stopped working."
"What did the doctor tell you?" "That I should sleep more and worry less, which is easy enough for her to say."
"Have you seen my keys anywhere?" "They were next to the telephone this morning, under the newspaper, I think."
"How much do you want for the table?" "Forty, and I will bring it to your house, because I have the van today."
"Why did you leave so early last night?" "To be honest, I was tired of hearing the same story for the third time."
"Do we have enough milk for the pancakes?" "Half a bottle, so either make fewer of them or go to the shop now."
"Is this seat taken?" "No, please sit down, my friend has just sent a message that he has missed his train." """

_ADVICE = """\
Before you paint the door, take off the handle, clean the surface with warm water and let it dry for a whole day.
To save the file under another name, open the menu, choose the second entry and type the name you want to use.
Cut the onions finely, fry them slowly in butter until they are golden, and only then add the flour and the stock.
If the engine does not start, check that there is fuel in the tank and that the battery contacts are not loose.
Water the tomatoes early in the morning, and always at the root, because wet leaves are more likely to fall ill.
Keep your receipts for at least two years, sorted by month, so that you can show them when somebody asks.
When you meet a group of riders on a narrow path, slow down, keep to one side and wait until they have passed.
Read the whole contract before you sign it, and ask about every sentence that you would not be able to explain."""

_LETTERS = """\
Dear Mr Halloran, thank you for your letter of the fourth; I am sorry to hear that the parcel arrived in pieces.
Hi Ana, the meeting has been moved to Thursday at two, same room, and please bring the figures for last quarter.
To whom it may concern: Ms Okafor worked in our accounts office for six years and was always careful and punctual.
Dear Aunt Lise, the weather here is terrible, the food is good, and I have already made friends with the neighbours.
Dear customer, your order has left our warehouse and should reach you within three to five working days.
Hello Jun, could you look at the second paragraph again? I think the reason we give there is not the real one.
Dear all, the kitchen on the third floor will be closed next week while the water pipes are being replaced.
Dear editor, your article on the new bridge forgets to mention who is going to pay for it in the coming years."""

_NEWS = """\
The council voted on Tuesday to keep the library open, although the money for it is promised for one year only.
Prices for wheat fell for the third week in a row after reports of an unexpectedly large harvest in the south.
A spokesman for the railway said that the repairs would be finished by the end of the month at the latest.
The home side won by two goals to one after a late penalty that the visitors' coach called a gift.
Firefighters needed almost six hours to bring the blaze in the furniture warehouse under control; no one was hurt.
The museum has bought a small painting that had hung in a dentist's waiting room for more than thirty years.
Researchers counted fewer swallows this spring than in any year since the survey was begun in the nineties.
The minister declined to comment on the figures and said that a full report would be published after the summer."""

_REASONS = """\
If all the boxes in the cellar are locked and this box is not locked, then it cannot be one of those in the cellar.
A farmer has twelve hens and sells a third of them; after buying five more she has thirteen hens on her farm.
It is often said that travel broadens the mind, but it depends a great deal on what the traveller pays attention to.
The first argument fails because it assumes what it sets out to prove, namely that the witness told the truth.
Two of the three switches do nothing, so the quickest way to find the right one is to try them from the left.
We cannot conclude from one cold winter that the climate is not changing, any more than from one hot summer that it is.
Since the square of an even number is even, a number whose square is odd must itself be odd as well.
Either the clock is slow or the train is early, and the clock was set by the radio only this morning."""

_CODE = """\
def total(prices, rate):
    net = sum(prices)
    return round(net * (1 + rate), 2)
---
for line in open("names.txt"):
    first, last = line.strip().split(",")
    print(last.upper(), first)
---
SELECT city, COUNT(*) AS visits FROM trips WHERE year = 2019 GROUP BY city ORDER BY visits DESC LIMIT 10;
---
if (count > limit) {
    console.log("Too many entries: " + count);
    return null;
}
---
{"name": "harbour", "depth": 12.5, "open": true, "ships": ["Alma", "Nord", "Kite"]}
---
while queue:
    node = queue.pop(0)
    queue.extend(child for child in node.children if child not in seen)
---
<ul class="menu"><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul>
---
git commit -m "Fix the date in the footer" && git push origin main"""

_KINDS = [kind.splitlines() for kind in (_STORIES, _FACTS, _TALK, _ADVICE, _LETTERS, _NEWS, _REASONS)]
_GROUPS = list(zip(*_KINDS, _CODE.split("\n---\n"), strict=True))
# Every other group backwards, so that the even and the odd texts are of the same kinds too.
LOSS_TEXTS: tuple[str, ...] = tuple(
    text.strip() for at, group in enumerate(_GROUPS) for text in (group[::-1] if at % 2 else group)
)
FEW_TEXTS = LOSS_TEXTS[:16]
"""Two of each kind, for what reads them again and again."""
