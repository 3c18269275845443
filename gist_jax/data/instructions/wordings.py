"""The wordings of the families: templates over the fields of a family and their FORMS.

One wording a line. A line that starts with a small letter is an imperative clause, to be put into
any of the FRAMES ("Please ...", "Can you ...?"); a line that starts with a capital is a whole
sentence. A line that starts with * is a sentence held out of training: it uses only words that
training wordings use too, so that what is new is their arrangement.
"""

FRAMES = (
    "%s.",
    "Please %s.",
    "Your task is to %s.",
    "I want you to %s.",
    "Can you %s?",
    "Could you %s?",
    "Just %s.",
)

WORDINGS = {
    "always": """
        answer with the word {word}
        say only the word {word}
        ignore the input and say {word}
        write nothing but the word {word}
        Whatever the input is, say {word}.
        Your answer should always be {word}.
        The answer is always {word}.
        The output must be the word {word}.
        * Your output must always be the word {word}.
        * Ignore the words and answer only with {word}.
    """,
    "say_times": """
        say the word {word} {times}
        write {word} {times} and nothing more
        repeat the word {word} {times}
        answer with {word} said {times}
        Your answer should be {word} written {times}.
        Ignore the input and say {word} {times}.
        The output must be {word}, repeated {times}.
        Whatever the input is, repeat {word} {times}.
        * Your output should be the word {word} repeated {times}.
        * The answer is always {word}, said {times}.
    """,
    "say_pair": """
        say {word} and then {colour}
        write {word} followed by {colour}
        answer with {word} first and {colour} second
        give the two words {word} and {colour}
        Your answer should be {word} and then {colour}.
        The answer is always {word} {colour}.
        Ignore the input and write {word}, then {colour}.
        First say {word}, then say {colour}.
        * The output must be {word} followed by the word {colour}.
        * Whatever the input is, say {word} and {colour}.
    """,
    "pick": """
        write the {position} word of the input
        copy only the {position} word
        give me the {position} word
        find the {position} word and say it
        What is the {position} word?
        Which word comes {position}?
        Your answer should be the {position} word.
        Look at the list: which word is {position}?
        * Say which word comes {position}.
        * The answer is the {position} word of the list.
        * Find the word that comes {position} in the input.
    """,
    "repeat_pick": """
        say the {position} word {times}
        repeat the {position} word of the input {times}
        write the {position} word {times}
        copy the {position} word {times}
        Your answer should be the {position} word, {times}.
        What is the {position} word? Say it {times}.
        Take the {position} word and repeat it {times}.
        The output must be the {position} word written {times}.
        * Find the {position} word and write it {times}.
        * Which word comes {position}? Repeat it {times}.
    """,
    "say_and_pick": """
        say {word} and then the {position} word
        write {word} followed by the {position} word
        answer with {word} and the {position} word
        give {word} and then copy the {position} word
        Your answer should be {word} and then the {position} word.
        Start with {word}, then copy the {position} word.
        The output must be {word} followed by the {position} word.
        Say {word}, then tell me the {position} word.
        * Your output should be {word}, then the {position} word of the input.
        * Write {word}, then say the {position} word.
    """,
    "fill": """
        replace every word with {word}
        write {word} once for each word
        turn every word into {word}
        change all the words to {word}
        For each word of the input, say {word}.
        Every word should become {word}.
        Your answer should have {word} for every word.
        Each time you see a word, write {word}.
        * Say {word} once for every word of the input.
        * All the words should become {word}.
    """,
    "map_all": """
        write the {kind} of every word
        give the {kind} of each word
        replace every word with its {kind}
        turn each word into its {kind}
        What is the {kind} of each word?
        For each word, say its {kind}.
        Your answer should be the {kinds} of the words.
        List the {kinds} of all the words.
        * For every word of the input, give the {kind}.
        * Change each word to its {kind}.
        * What are the {kinds} of the words?
    """,
    "map_one": """
        write the {kind} of the {position} word
        give me the {kind} of the {position} word
        find the {position} word and say its {kind}
        look only at the {position} word and write its {kind}
        What is the {kind} of the {position} word?
        Your answer should be the {kind} of the {position} word.
        Take the {position} word and give its {kind}.
        The answer is the {kind} of the {position} word.
        * Tell me the {kind} of the {position} word of the input.
        * Which word comes {position}? Say its {kind}.
    """,
    "find": """
        find the {category} in the input
        write the one word that is {a_category}
        say which word is {a_category}
        copy the one {category} in the list
        Which word is {a_category}?
        What is the {category} in the input?
        Your answer should be the {category}.
        There is one {category}: which word is it?
        * Tell me which of the words is {a_category}.
        * Look at the list: which word is {a_category}?
    """,
    "keep": """
        keep only the {categories}
        write only the words that are {categories}
        list all the {categories} in the input
        find the {categories} and copy them
        Which of the words are {categories}?
        Your answer should have only the {categories}.
        Keep every {category} and drop the rest.
        Copy each word that is {a_category}.
        * List only the words that are {categories}.
        * Which words in the input are {categories}?
    """,
    "drop": """
        remove the {categories} from the input
        drop all the {categories}
        leave out every word that is {a_category}
        copy the input without the {categories}
        Write all the words except the {categories}.
        Your answer should have no {categories}.
        Which of the words are not {categories}?
        Remove every {category} and keep the rest.
        * Copy all the words that are not {categories}.
        * Leave out the {categories} and keep the rest.
    """,
    "count": """
        count the words in the input
        say how many words there are
        tell me the number of words
        write the number of words in the list
        How many words are there?
        What is the number of words in the input?
        Your answer should be how many words there are.
        Count all the words and say the number.
        * How many words are in the list?
        * Count the words and tell me how many.
    """,
    "contains": """
        say yes if {word} is in the input
        tell me if the input has the word {word}
        say whether {word} is one of the words
        say yes if you see {word}, otherwise say no
        Is {word} one of the words?
        Does the input have the word {word}?
        Is the word {word} in the list?
        Yes or no: is {word} in the input?
        * Does the list have the word {word}?
        * Say yes if one of the words is {word}.
    """,
    "conditional": """
        say {colour} if the first word is {a_category} and {other} otherwise
        write {colour} if the input starts with {a_category}, otherwise {other}
        If the first word is {a_category}, say {colour}, otherwise say {other}.
        Is the first word {a_category}? If so say {colour}, if not {other}.
        If the input starts with {a_category}, answer {colour}, if not, answer {other}.
        When the first word is {a_category} write {colour}, otherwise {other}.
        Your answer should be {colour} if {a_category} comes first, otherwise {other}.
        Does the input start with {a_category}? Then say {colour}, if not {other}.
        * If {a_category} comes first, say {colour}, otherwise say {other}.
        * Say {colour} when the first word is {a_category} and {other} if not.
    """,
    "reverse": """
        reverse the order of the words
        write the words in reverse order
        say the words backwards, from last to first
        copy the input from the end to the start
        What is the input backwards?
        Your answer should be the words in reverse order.
        Start with the last word and end with the first.
        List all the words from last to first.
        * Give the words of the input backwards.
        * Copy the list in reverse order.
        * Write the words backwards: last word first.
    """,
    "add": """
        put {word} {place} the input
        write {word} {place} all the words
        add the word {word} {place} the input
        copy the input and add {word} at the {end}
        Add {word} to the {end} of the list.
        Your answer should be the input with {word} at the {end}.
        The input should have {word} at the {end}.
        Copy all the words with {word} {place} them.
        * Put the word {word} at the {end} of the input.
        * Copy the list with {word} {place} it.
    """,
    "between": """
        put {word} between the words
        write {word} between every two words
        add the word {word} between all the words
        copy the input with {word} between the words
        Your answer should have {word} between the words.
        Between every two words, say {word}.
        There should be {word} between all the words.
        The words should have {word} between them.
        * Say the input with the word {word} between every two words.
        * Copy the list and put {word} between the words.
    """,
    "replace": """
        replace the {position} word with {word}
        change the {position} word to {word}
        copy the input with {word} as the {position} word
        turn the {position} word into {word} and copy the rest
        The {position} word should become {word}.
        Write the input with {word} as the {position} word.
        Your answer should have {word} as the {position} word.
        Leave out the {position} word and write {word} there.
        * Copy the list and turn the {position} word into {word}.
        * The {position} word of the input should become {word}.
    """,
}
