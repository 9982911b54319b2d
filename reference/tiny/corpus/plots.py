"""Plots of short stories: a wish, an event and a matching ending. Each step has several wordings.

Slots: {h} hero, {k} kind, {p} place, {f} friend, {fk} friend's kind, {o} lost or wanted thing, {w} weather, {t} trait.
"""

OPENINGS = (
    "Once upon a time there was {a_t} {k} named {h}. {h} lived {p}.",
    "{h} was {a_t} {k} who lived {p}.",
    "{P} there lived {a_t} {k}. Its name was {h}.",
    "There once was {a_k} called {h}. {h} was {t} and lived {p}.",
)

PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        ("One {w} morning {h} could not find the {o}.", "One {w} day the {o} was gone.", "On {a_w} evening {h} lost the {o}."),
        ("{h} looked under the bed, behind the door and in the grass, but it was nowhere.", "{h} searched everywhere and grew sad.",
         "First {h} looked at home, then along the path, but the {o} was not there."),
        ("Then {h} met {a_fk} named {f}. \"Why are you sad?\" asked {f}. \"I have lost my {o},\" said {h}.",
         "On the path sat {f}, {a_fk}. \"I have lost my {o},\" said {h}. \"Let us look together,\" said {f}."),
        ("{f} had seen something shine by the stream, so they walked there together.",
         "{f} remembered a strange sound near the old well, and they went to look.",
         "They asked the wind, the stones and at last a wise old raven, who pointed to the hill."),
        ("And there lay the {o}! {h} laughed with joy.", "There, between two roots, was the {o}. {h} hugged {f}."),
        ("From that day on {h} kept the {o} safe, and {f} was a friend for life.",
         "{h} thanked {f}, and they shared a warm supper that night.", "Since then {h} and {f} have looked for lost things together."),
    ),
    "storm": (
        ("One night a great storm came.", "One {w} afternoon the sky turned black and a storm began."),
        ("The wind took the roof of the house where {f} the {fk} lived.", "Rain filled the home of {f}, {a_fk}, up to the door."),
        ("{h} heard {f} call for help and ran out into the rain.", "\"Help!\" called {f}. {h} did not wait and ran as fast as the wind."),
        ("\"Come with me,\" said {h}. \"My home is dry.\"", "{h} took {f} by the hand and led the way home."),
        ("They drank hot tea and told stories until the storm was over.", "All night they sat by the fire and listened to the thunder."),
        ("In the morning they built a new roof together, stronger than before.",
         "When the sun came out they mended the house, and {f} gave {h} a {o} as a present."),
    ),
    "race": (
        ("Every year there was a race {p}, and this year {h} wanted to win.", "One {w} day a race was held, and the prize was a {o}."),
        ("{f} the {fk} was the fastest of all and laughed at {h}.", "Everyone thought that {f}, {a_fk}, would win."),
        ("{h} practised every morning before the sun was up.", "But {h} had practised for weeks and was not afraid."),
        ("Halfway through the race {f} fell into a hole and could not get out.",
         "Near the end {f} stepped on a thorn and sat down by the road."),
        ("{h} stopped and helped {f}, although the others ran past.", "{h} could have won, but turned back to help {f}."),
        ("They came last, hand in hand, and everyone cheered for them the loudest.",
         "They did not win the {o}, but {f} never laughed at {h} again, and they became friends."),
    ),
    "garden": (
        ("{h} found a tiny seed on the path.", "One {w} morning {h} bought a strange seed from an old trader."),
        ("{h} put it in the ground and gave it water every day.", "{h} planted it beside the house and waited."),
        ("For a long time nothing grew, and {f} the {fk} said that it never would.",
         "Days went by. \"It is only a stone,\" said {f}, {a_fk}."),
        ("But {h} did not give up and sang to the seed every evening.", "{h} just smiled and went on watering."),
        ("Then one day a green leaf came out, and soon there was a tree full of golden fruit.",
         "At last a flower opened, as big as a {o} and as bright as the sun."),
        ("{h} gave the first fruit to {f}, who said sorry.", "{h} shared it with {f} and with everyone else, and nobody was hungry that winter."),
    ),
    "map": (
        ("In an old box {h} found a map with a red cross.", "One {w} day {h} found a map inside a bottle."),
        ("{h} showed it to {f}, {a_fk}, and they packed bread and a lamp.", "\"Treasure!\" cried {f} the {fk}, and they set out at once."),
        ("They crossed the river on a fallen tree and climbed the steep hill.",
         "They walked through the dark forest, where every sound made them jump."),
        ("Under a flat stone they found a chest.", "At the red cross stood an old chest."),
        ("Inside there was no gold, only a {o} and a letter: \"The journey is the treasure.\"",
         "It held a single {o}, and a note from a child who had hidden it long ago."),
        ("{h} and {f} laughed all the way home.", "{h} and {f} put a new note into the chest and buried it again for someone else."),
    ),
    "song": (
        ("{h} loved to sing, but only when nobody was near.", "{h} had a beautiful voice and was too shy to use it."),
        ("One {w} evening {f} the {fk} was passing by and heard it.", "One day {f}, {a_fk}, heard {h} sing behind the house."),
        ("\"You must sing at the feast,\" said {f}. {h} shook with fear.", "\"Why do you hide this song?\" asked {f}. \"I am afraid,\" said {h}."),
        ("So {f} sat in the first row and held up a {o} for luck.", "{f} promised to stand right beside {h} all the time."),
        ("{h} looked only at {f}, took a deep breath and began.", "At first the voice was thin, then it grew and filled the air."),
        ("When it was over there was silence, and then everyone clapped.", "Since that night {h} sings every evening, and all the windows are open."),
    ),
    "bridge": (
        ("A river ran past the home of {h}, and on the other side lived {f}, {a_fk}.",
         "{h} and {f} the {fk} lived on two sides of a wide river."),
        ("They could wave, but they could never meet.", "Every day they called to each other across the water."),
        ("One {w} day {h} began to carry stones to the bank.", "\"I will build a bridge,\" said {h} one {w} morning."),
        ("{f} saw it and began to build from the other side.", "The others laughed, but {f} brought wood and rope."),
        ("It took them the whole summer, and twice the river took the stones away.", "They worked until their hands were sore."),
        ("On the last day they met in the middle and hung a {o} there, so that everyone would find the way.",
         "When the last stone was set they met in the middle, and they had supper right there."),
    ),
    "night": (
        ("{h} was afraid of the dark.", "When night came, {h} always hid under the blanket."),
        ("One night there was a soft knock at the window. It was {f}, {a_fk}.", "One {w} night {f} the {fk} came by with a {o}."),
        ("\"Come out,\" said {f}. \"I will show you something.\"", "\"The dark is full of wonders,\" said {f}. \"Come and see.\""),
        ("They climbed the hill and looked up. The sky was full of stars.", "They sat down in the grass, and thousands of stars were shining."),
        ("{f} knew all their names and told a story about each of them.", "They counted the stars until they had no more numbers."),
        ("Since then {h} has loved the night.", "{h} fell asleep there and was never afraid again."),
    ),
}
