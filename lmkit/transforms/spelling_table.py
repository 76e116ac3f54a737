"""English words that are often misspelt, and how."""

from __future__ import annotations

__all__ = ["MISSPELLINGS"]

_TABLE = """
absence absense abscence; accept exept; acceptable acceptible; accidentally accidently; accommodate
accomodate acommodate; achieve acheive; acknowledge acknowlege; acquaintance aquaintance; acquire
aquire adquire; across accross; actually actualy acutally; address adress; advertisement
advertisment; aggressive agressive; almost allmost; already allready; although altough althought;
always allways alway; amateur amature; among amoung; annual anual; apparent apparant aparent;
appearance appearence apearance; argument arguement; around arround; attendance attendence; audience
audiance; awful awfull aweful; awkward akward; basically basicly; beautiful beautifull beatiful;
because becuase becasue beacuse; before befor; beginning begining; behaviour behavoir; behavior
behavoir; believe beleive belive; benefit benifit; boring borring; brilliant brillant; business
buisness bussiness; calendar calender; category catagory; ceiling cieling; cemetery cemetary;
certain certian; changeable changable; character charachter caracter; cigarette cigarrete; colleague
collegue; column colum; coming comming; committed commited; committee commitee comittee; comparison
comparision; completely completly; concentrate consentrate; conscience concience; conscious
concious; consistent consistant; convenient convienient; could coud; course corse; criticism
critisism; decision desicion; definite definate; definitely definately definitly; description
discription; desperate desparate; develop develope; difference diffrence differance; different
diffrent differant; dilemma dilema; disappear dissapear disapear; disappoint dissapoint disapoint;
disappointed dissapointed disapointed; disappointing dissapointing disapointing; discipline
disipline; does dose; embarrass embarass; embarrassing embarassing; enough enuf enought;
entertaining entertaning; environment enviroment; equipment equiptment; especially especialy
expecially; everything everyting; exaggerate exagerate; excellent excelent exellent; except exept;
exercise excercise; existence existance; expensive expencive; experience experiance expereince;
explanation explaination; extremely extremly; familiar familar; fascinating facinating; favorite
favorit; february febuary; finally finaly; foreign foriegn; forty fourty; forward foward; friend
freind; friends freinds; fulfil fullfil; generally generaly; genius genious; government goverment;
grammar grammer; grateful greatful; guarantee garantee guarentee; guard gaurd; happened happend;
harass harrass; height heigth; heroes heros; hilarious hillarious; humorous humourous; hungry
hungery; hypocrisy hypocricy; imagine immagine; imitate immitate; immediately immediatly; incredible
incredable; independent independant; instead insted; intelligent inteligent; interest intrest;
interesting intresting interresting; interrupt interupt; irresistible irresistable; island iland;
jealous jelous; jewelry jewelery; knowledge knowlege; laugh laff; leisure liesure; length lenght;
library libary; license lisence; lightning lightening; likely likley; listen lisen; literally
litterally literaly; literature litterature; loneliness lonelyness; lose loose; maintenance
maintainance; making makeing; marriage marrage; medicine medecine; medieval mideval; memorable
memorible; millennium millenium; miniature minature; minute minuet; mischievous mischievious;
misspell mispell; money mony; mysterious misterious; necessary neccessary necesary; neighbor
nieghbor; neighbour nieghbour; ninety ninty; noticeable noticable; obviously obviosly; occasion
ocassion occassion; occasionally occasionaly; occurred occured; occurrence occurence; often offen;
opinion opinon; opportunity oportunity; original orginal; ourselves ourselfs; parallel paralel;
particular particuler; people poeple peaple; perform preform; performance performence preformance;
permanent permanant; persistent persistant; personally personaly; persuade pursuade; picture
pitcher; piece peice; possession posession; possible possable; potatoes potatos; practically
practicly; predictable predictible; prefer perfer; prejudice predjudice; presence presance; pretty
prety; privilege priviledge; probably probly probaly; problem problam; professional proffesional;
professor proffesor; promise promiss; pronunciation pronounciation; publicly publically; quality
qualitty; quiet quite; quite quiet; really realy relly; receive recieve; received recieved; recently
recentley; recognize reconize; recommend recomend reccommend; recommended recomended reccommended;
reference referance; referred refered; relevant relevent; religious religous; remember rember;
repetition repitition; restaurant restaurent restaraunt; rhyme ryme; rhythm rythm; ridiculous
rediculous; safety safty; scene seen; scenery scenary; schedule schedual; scissors sissors;
secretary secretery; seize sieze; sentence sentance; separate seperate; separately seperately;
sergeant sargent; service servise; several severel; shining shineing; similar similiar simular;
sincerely sincerly; soldier soilder; something somthing; special speical; speech speach; stopped
stoped; story storey; strange stange; strength strenght; successful succesful successfull; supersede
supercede; supposed suposed; surely surly; surprise suprise; surprised suprised; surprising
suprising; talented tallented; temperature temperture; terrible terible; than then; their thier;
then than; there thier; therefore therfore; they thay; thoroughly throughly; though tho thogh;
thought thougt; thousand thousend; threshold threshhold; through thru throught; together togather;
tomorrow tommorow tommorrow; tongue tounge; tragedy tradgedy; tries trys; truly truely; twelfth
twelth; unfortunately unfortunatly; unique uniqe; until untill; useful usefull; usually usualy;
vacuum vaccum; valuable valueable; vegetable vegtable; vehicle vehical; very verry; village
villiage; villain villian; visible visable; weather wether; wednesday wensday; weird wierd; welcome
wellcome; where were; whether wether; which wich; while wile; whole hole; without witout; woman
women; wonderful wonderfull; would woud; writing writting; written writen; yesterday yestarday; your
youre
"""

_ROWS = [row.split() for row in _TABLE.split(";")]
#: In small letters.
MISSPELLINGS = {word: [wrong for wrong in wrongs if wrong != word] for word, *wrongs in _ROWS}
